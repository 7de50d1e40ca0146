"""How many waiting sequences can start: by the step's budget, and by the memory they will take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.agenda import Agenda
from trunkline.engine.forecast import num_that_fit
from trunkline.engine.lru_cache import LruCache
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import Sequence
from trunkline.engine.slots import SlotTable


def take_candidates(
    agenda: Agenda, lru: LruCache | None, page_size: int, budget: float, most: int
) -> list[int]:
    """Pop the next ranks whose tokens to compute begin within `budget`, at most `most`."""
    nodes = agenda.nodes
    ranks: list[int] = []
    counted: set[int] = set()
    while agenda.num_waiting and budget > 0 and len(ranks) < most:
        rank = agenda.pop()
        budget -= agenda.own_tokens(rank)
        if lru is not None:
            budget += len(lru.match_prompt(agenda.sequence(rank))) * page_size
        for node in agenda.chain(rank):
            if node not in counted:
                counted.add(node)
                budget -= int(nodes.tree.end[node] - nodes.computed[node])
        ranks.append(rank)
    return ranks


def num_that_fit_later(
    ranks: list[int],
    agenda: Agenda,
    table: SlotTable,
    running: NDArray[np.int64],
    expected_tokens: Callable[[Sequence], int],
    config: SchedulerConfig,
) -> int:
    """How many of `ranks`, from the first, can start without running out of pages later.

    Args:
        ranks: waiting sequences.
        running: slots.
        expected_tokens: how many a sequence is expected to have at its end.
    """
    if not ranks:
        return 0
    size = config.page_size
    own = np.array([agenda.own_tokens(rank) for rank in ranks], np.int64)
    sequences = [agenda.sequence(rank) for rank in ranks]
    expected = np.array([expected_tokens(s) - s.num_tokens for s in sequences], np.int64)
    known = table.known[running]
    # A sequence's last page is rarely full: count it as if all but one of its slots were lost.
    slack = size - 1
    current = np.concatenate([known - table.own_start[running], own]) + slack
    # One that has outlived its prediction may go on to its limit.
    ends = np.where(
        known < table.expected[running], table.expected[running], table.longest[running]
    )
    to_come = np.concatenate([ends - known, expected])
    resident = (agenda.nodes.num_pages + np.cumsum(agenda.missing_node_pages(ranks))) * size
    return num_that_fit(
        current, np.maximum(to_come, 1), len(running), resident, config.capacity_tokens
    )


def num_that_fit_now(
    ranks: list[int], agenda: Agenda, lru: LruCache | None, num_available: int, page_size: int
) -> int:
    """Like `num_that_fit_later`, without a look at what will be generated.

    Args:
        num_available: pages that nobody needs.
    """
    for i, (rank, node_pages) in enumerate(
        zip(ranks, agenda.missing_node_pages(ranks).tolist(), strict=True)
    ):
        needed = node_pages - (-agenda.own_tokens(rank) // page_size)
        if lru is not None:
            hits = lru.match_prompt(agenda.sequence(rank))
            needed -= len(hits) - lru.num_idle(hits)
        num_available -= needed
        if num_available < 0:
            return i
    return len(ranks)
