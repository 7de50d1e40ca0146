"""Prefix caching by content, with eviction of what was used longest ago.

This is what vLLM (block hashes) and SGLang (a radix tree) do, here as a baseline: it looks back at
what was computed, where the plan looks ahead at what will be needed. A page is found by the tokens
in it and by the page before it; tokens are compared, not hashes of them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.block_pool import PagePool, Pages
from trunkline.engine.sequence import Sequence

ROOT = 0


@dataclass(frozen=True)
class _Entry:
    key: tuple[int, bytes]  # serial of the page before, tokens of the page
    serial: int  # of this page, never used again for another


class LruCache:
    """Computed pages by content. The cache itself is a holder of each of its pages."""

    def __init__(self, pool: PagePool, page_size: int) -> None:
        self._pool = pool
        self._page_size = page_size
        self._page_of: dict[tuple[int, bytes], int] = {}
        self._entry_of: dict[int, _Entry] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # nobody else holds these; oldest first
        self._num_serials = ROOT

    @property
    def num_evictable(self) -> int:
        """Pages that only the cache holds."""
        return len(self._idle)

    @property
    def pages(self) -> Pages:
        """All pages of the cache."""
        return np.fromiter(self._entry_of, np.int32, len(self._entry_of))

    def match(self, tokens: NDArray[np.int32]) -> Pages:
        """The pages of the longest cached prefix of `tokens`, whole pages only."""
        serial, found = ROOT, []
        for start in range(0, len(tokens) - self._page_size + 1, self._page_size):
            page = self._page_of.get((serial, tokens[start : start + self._page_size].tobytes()))
            if page is None:
                break
            found.append(page)
            serial = self._entry_of[page].serial
        return np.array(found, np.int32)

    def match_prompt(self, sequence: Sequence) -> Pages:
        """The cached pages that `sequence` can use.

        None when something is read of its prompt's rows, which all have to be computed then; the
        last token of any prompt has to be.
        """
        return self.match(sequence.prompt[: 0 if sequence.reading is not None else -1])

    def num_idle(self, pages: Pages) -> int:
        """How many of `pages` nobody but the cache holds."""
        return sum(page in self._idle for page in pages.tolist())

    def acquire(self, pages: Pages) -> None:
        """Add a holder to each of `pages`, which `match` has found."""
        self._pool.retain(pages)
        for page in pages.tolist():
            self._idle.pop(page, None)

    def insert(self, tokens: NDArray[np.int32], pages: Pages) -> None:
        """Let `pages` be found by their content.

        Args:
            tokens: from position 0 on; what does not fill a page is left out.
            pages: of these tokens, computed or about to be, and held by somebody.
        """
        serial = ROOT
        size = self._page_size
        for page, start in zip(
            pages.tolist(), range(0, len(tokens) - size + 1, size), strict=False
        ):
            key = (serial, tokens[start : start + size].tobytes())
            known = self._page_of.get(key)
            if known is None:
                self._num_serials += 1
                self._page_of[key] = page
                self._entry_of[page] = _Entry(key, self._num_serials)
                self._pool.retain(np.array([page], np.int32))
                known = page
            serial = self._entry_of[known].serial

    def release(self, pages: Pages) -> None:
        """Take a holder from each of `pages`, cached or not."""
        self._pool.release(pages)
        # The last page of a prefix is of no use without the others: it becomes the oldest.
        for page in pages.tolist()[::-1]:
            if page in self._entry_of and self._pool.num_holders(page) == 1:
                self._idle[page] = None

    def make_room(self, num_pages: int) -> None:
        """Evict until `num_pages` are free, or nothing can be evicted any more."""
        while self._pool.num_free < num_pages and self._idle:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._entry_of.pop(page).key]
            self._pool.release(np.array([page], np.int32))

    def check_invariants(self) -> None:
        """Raise AssertionError when the cache contradicts itself or the pool."""
        assert len(self._page_of) == len(self._entry_of)
        for page, entry in self._entry_of.items():
            assert self._page_of[entry.key] == page
            assert (self._pool.num_holders(page) == 1) == (page in self._idle)
