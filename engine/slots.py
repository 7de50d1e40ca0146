"""The running sequences as a structure of arrays, so that a step's bookkeeping is vectorised.

A slot is a row in every array; it belongs to one running sequence until that finishes or is
preempted: its tenancy. Known tokens are prompt and output, pending ones among them: they have been
sampled, or will have been before the next step runs, but have not reached the host. Computed
tokens have their KV in the cache. A sequence in decode has exactly one token that is known and not
computed.

    position   0              own_start          computed     known   table_len * page_size
               | shared nodes | own pages ...     |            |       |
    pages      held by nodes    held by the slot
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.block_pool import Pages
from trunkline.engine.sequence import Sequence

NO_PAGE = -1
NO_GROUP = -1
NO_TENANCY = -1

Scalar = TypeVar("Scalar", bound=np.generic)


class SlotTable:
    """Arrays over slots. `take` may replace them by larger ones: never keep one across it."""

    def __init__(self, num_slots: int = 64, num_pages: int = 64, num_levels: int = 1) -> None:
        self.sequences: dict[int, Sequence] = {}
        self.prompt_len = np.zeros(num_slots, np.int64)  # [slots] tokens
        self.known = np.zeros(num_slots, np.int64)  # [slots] tokens
        self.num_pending = np.zeros(num_slots, np.int64)  # [slots] tokens
        self.computed = np.zeros(num_slots, np.int64)  # [slots] tokens
        self.own_start = np.zeros(num_slots, np.int64)  # [slots] token position
        self.expected = np.zeros(num_slots, np.int64)  # [slots] tokens when it will have finished
        self.longest = np.zeros(num_slots, np.int64)  # [slots] tokens that it may have at most
        self.rank = np.zeros(num_slots, np.int64)  # [slots] place in the planned order
        self.leaf = np.zeros(num_slots, np.int64)  # [slots] place among the tree's leaves
        self.last_token = np.zeros(num_slots, np.int32)  # [slots] token id or PENDING_TOKEN
        # [slots] sampling the next token takes all known ones on the host.
        self.needs_tokens = np.zeros(num_slots, np.bool_)
        self.reads = np.zeros(num_slots, np.bool_)  # [slots] something is read of the prompt's rows
        self.tenancy = np.full(num_slots, NO_TENANCY, np.int64)  # [slots] number, never used again
        self._num_tenancies = 0
        self.table_len = np.zeros(num_slots, np.int64)  # [slots] pages
        self.table = np.full((num_slots, num_pages), NO_PAGE, np.int32)  # [slots, pages]
        # The attention groups of each slot, shallow to deep.
        self.group = np.full((num_slots, num_levels), NO_GROUP, np.int64)  # [slots, levels] node
        self.group_end = np.zeros((num_slots, num_levels), np.int64)  # [slots, levels] position
        self._free = list(range(num_slots - 1, -1, -1))

    def take(self, sequence: Sequence) -> int:
        """A free slot for `sequence`."""
        if not self._free:
            self._grow_slots(2 * len(self.known))
        slot = self._free.pop()
        self.sequences[slot] = sequence
        self.tenancy[slot] = self._num_tenancies
        self._num_tenancies += 1
        return slot

    def give_back(self, slot: int) -> Sequence:
        self.table[slot] = NO_PAGE
        self.table_len[slot] = 0
        self.num_pending[slot] = 0
        self.tenancy[slot] = NO_TENANCY
        self._free.append(slot)
        return self.sequences.pop(slot)

    def own_pages(self, slot: int, page_size: int) -> Pages:
        """The pages that the slot itself holds."""
        first = self.own_start[slot] // page_size
        return self.table[slot, first : self.table_len[slot]]

    def is_through(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of `slots` has as many tokens as it may get; the last is pending."""
        is_through: NDArray[np.bool_] = self.known[slots] >= self.longest[slots]
        return is_through

    def without_page(self, slots: NDArray[np.int64], page_size: int) -> NDArray[np.int64]:
        """Those of `slots` whose last known token, to be computed next, has no page."""
        room = self.table_len[slots] * page_size
        return slots[(self.known[slots] > room) & ~self.is_through(slots)]

    def append_pages(self, slot: int, pages: Pages) -> None:
        """Add `pages` at the end of the slot's page table."""
        old = int(self.table_len[slot])
        new = old + len(pages)
        self.reserve_pages(new)
        self.table[slot, old:new] = pages
        self.table_len[slot] = new

    def reserve_pages(self, num_pages: int) -> None:
        """Make every slot's page table at least `num_pages` wide."""
        if num_pages > self.table.shape[1]:
            width = max(num_pages, 2 * self.table.shape[1])
            self.table = _grown(self.table, (len(self.table), width), NO_PAGE)

    def reset_groups(self, num_levels: int) -> None:
        """Forget all attention groups and make room for `num_levels` of them."""
        self.group = np.full((len(self.known), num_levels), NO_GROUP, np.int64)
        self.group_end = np.zeros((len(self.known), num_levels), np.int64)

    def set_groups(self, slot: int, groups: list[int], ends: NDArray[np.int64]) -> None:
        """The nodes `groups`, shallow to deep, are the slot's; `ends` are all nodes' ends."""
        self.group[slot] = NO_GROUP
        self.group[slot, : len(groups)] = groups
        self.group_end[slot, : len(groups)] = ends[groups]

    def check_invariants(self, slot: int, page_size: int) -> None:
        """Raise AssertionError when the slot's counts contradict each other or its sequence."""
        sequence = self.sequences[slot]
        assert self.tenancy[slot] != NO_TENANCY
        assert self.known[slot] == sequence.num_tokens + self.num_pending[slot]
        assert self.known[slot] <= sequence.max_num_tokens
        assert self.num_pending[slot] >= 0
        assert self.computed[slot] <= self.known[slot]
        assert self.table_len[slot] * page_size >= self.computed[slot]

    def _grow_slots(self, num_slots: int) -> None:
        old = len(self.known)
        self.prompt_len = _grown(self.prompt_len, (num_slots,), 0)
        self.known = _grown(self.known, (num_slots,), 0)
        self.num_pending = _grown(self.num_pending, (num_slots,), 0)
        self.computed = _grown(self.computed, (num_slots,), 0)
        self.own_start = _grown(self.own_start, (num_slots,), 0)
        self.expected = _grown(self.expected, (num_slots,), 0)
        self.longest = _grown(self.longest, (num_slots,), 0)
        self.rank = _grown(self.rank, (num_slots,), 0)
        self.leaf = _grown(self.leaf, (num_slots,), 0)
        self.last_token = _grown(self.last_token, (num_slots,), 0)
        self.needs_tokens = _grown(self.needs_tokens, (num_slots,), 0)
        self.reads = _grown(self.reads, (num_slots,), 0)
        self.tenancy = _grown(self.tenancy, (num_slots,), NO_TENANCY)
        self.table_len = _grown(self.table_len, (num_slots,), 0)
        self.table = _grown(self.table, (num_slots, self.table.shape[1]), NO_PAGE)
        self.group = _grown(self.group, (num_slots, self.group.shape[1]), NO_GROUP)
        self.group_end = _grown(self.group_end, (num_slots, self.group_end.shape[1]), 0)
        self._free.extend(range(num_slots - 1, old - 1, -1))


def _grown(array: NDArray[Scalar], shape: tuple[int, ...], fill: int) -> NDArray[Scalar]:
    larger = np.full(shape, fill, array.dtype)
    larger[tuple(slice(0, size) for size in array.shape)] = array
    return larger
