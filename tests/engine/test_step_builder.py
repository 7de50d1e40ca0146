"""Which entries of a step read a shared prefix together, and which for themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from trunkline.engine.grouping import TILE_ROWS
from trunkline.engine.slots import NO_GROUP, SlotTable
from trunkline.engine.step_builder import build_step_plan
from trunkline.engine.step_plan import AttentionSpans, StepPlan

PAGE_SIZE = 16
Int64Array = NDArray[np.int64]


def make_table(members: list[tuple[list[int], int]]) -> SlotTable:
    """A slot for each member: ends of the nodes above it, and tokens computed behind them.

    Nodes with the same end are the same node.
    """
    table = SlotTable(len(members), 1024, max(len(ends) for ends, _ in members) + 1)
    for slot, (ends, computed) in enumerate(members):
        tokens = SimpleNamespace(tokens=lambda start, end: np.zeros(end - start, np.int32))
        assert table.take(cast("Any", tokens)) == slot
        table.leaf[slot] = slot
        table.computed[slot] = (ends[-1] if ends else 0) + computed
        table.table[slot] = np.arange(1024)
        table.group[slot] = NO_GROUP
        for level, end in enumerate(ends):
            table.group[slot, level], table.group_end[slot, level] = end, end
    return table


def build(table: SlotTable, lengths: list[int]) -> StepPlan:
    """The step that computes `lengths[s]` more tokens of each slot s, all that are known."""
    new = np.array(lengths, np.int64)
    slots = np.arange(len(new))
    table.known[slots] = table.computed[slots] + new
    return build_step_plan(0, table, slots, new, PAGE_SIZE)


def named(plan: StepPlan) -> list[tuple[list[int], int, int, bool]]:
    """The spans: slots, first key, last key (exclusive), whether causal."""
    spans: AttentionSpans = plan.spans
    slot_of_row = np.repeat(plan.entry_sequence, plan.entry_length)
    return [
        (
            np.unique(slot_of_row[spans.row_start[s] : spans.row_end[s]]).tolist(),
            int(spans.kv_start[s]),
            int(spans.kv_end[s]),
            bool(spans.causal[s]),
        )
        for s in range(spans.num_spans)
    ]


def num_partials(plan: StepPlan) -> int:
    """Partial results of rows, of those that have more than one span."""
    spans = plan.spans
    of_row = np.zeros(plan.num_rows, np.int64)
    for start, end in zip(spans.row_start, spans.row_end, strict=True):
        of_row[start:end] += 1
    return int(of_row[of_row > 1].sum())


def test_rows_that_fill_tiles_read_their_prefix_alone() -> None:
    table = make_table([([1600], 5), ([1600], 0), ([1600], 9)])
    plan = build(table, [1, 2 * TILE_ROWS, 1])
    assert plan.entry_sequence.tolist() == [0, 2, 1]
    assert named(plan) == [
        ([0, 2], 0, 1600, False),
        ([0], 1600, 1606, True),
        ([2], 1600, 1610, True),
        ([1], 0, 1600 + 2 * TILE_ROWS, True),
    ]


def test_rows_that_leave_most_of_a_tile_free_stay_in_the_group() -> None:
    table = make_table([([1600], 5), ([1600], 0)])
    assert named(build(table, [1, 5])) == [
        ([0, 1], 0, 1600, False),
        ([0], 1600, 1606, True),
        ([1], 1600, 1605, True),
    ]


@pytest.mark.parametrize(
    ("num_rows", "is_alone"),
    [
        # Free rows of the last tile times the prefix, against what merging costs the entry's rows.
        (TILE_ROWS + 1, False),
        (2 * TILE_ROWS - 1, True),
        (2 * TILE_ROWS, True),
        (TILE_ROWS // 2, False),
    ],
)
def test_what_is_left_of_the_last_tile_decides(num_rows: int, is_alone: bool) -> None:
    table = make_table([([8000], 1), ([8000], 0)])
    starts = [start for slots, start, _, _ in named(build(table, [1, num_rows])) if slots == [1]]
    assert starts == ([0] if is_alone else [8000])


def test_an_entry_alone_leaves_every_level() -> None:
    table = make_table([([320, 1600], 0), ([320, 1600], 0), ([320, 1600], 0)])
    assert named(build(table, [1, TILE_ROWS, 1])) == [
        ([0, 2], 0, 320, False),
        ([0, 2], 320, 1600, False),
        ([0], 1600, 1601, True),
        ([2], 1600, 1601, True),
        ([1], 0, 1600 + TILE_ROWS, True),
    ]


def test_only_rows_that_gain_from_a_group_pay_for_it() -> None:
    """960 decode rows below 60 prefixes, and 15 chunks of 200 rows below as many of them."""
    members = [([2000 + 16 * (i // 16)], i % 7) for i in range(960)]
    chunks = [([2000 + 16 * i], 0) for i in range(15)]
    plan = build(make_table(members + chunks), [1] * 960 + [200] * 15)
    assert plan.num_rows == 3960
    assert num_partials(plan) == 2 * 960
