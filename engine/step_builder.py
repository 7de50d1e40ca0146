"""Turns "these slots, this many tokens each" into the arrays of a StepPlan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trunkline.engine import grouping
from trunkline.engine.slots import NO_GROUP, SlotTable
from trunkline.engine.step_plan import AttentionSpans, StepPlan

BoolArray = NDArray[np.bool_]
Int64Array = NDArray[np.int64]

# A shared prefix that fewer rows of the step attend to is read with their own keys instead.
MIN_GROUP_ROWS = 2


def build_step_plan(
    step: int, table: SlotTable, slots: Int64Array, lengths: Int64Array, page_size: int
) -> StepPlan:
    """The plan that computes `lengths[e]` more tokens of each slot.

    Its entries are in attention order: depth-first over the prefix tree, whatever the order of
    starting; last those that read their prefix for themselves and would stand between the others.

    Args:
        slots: [num_entries] in any order.
        lengths: [num_entries] tokens, at least 1. `table.computed` is where each entry starts.
    """
    alone = _reads_alone(table, slots, lengths)
    order = np.lexsort((table.leaf[slots], alone))
    slots, lengths, alone = slots[order], lengths[order], alone[order]
    start = table.computed[slots]
    end = start + lengths
    row_end = np.cumsum(lengths)
    row_start = row_end - lengths
    num_rows = int(row_end[-1])

    entry_of_row = np.repeat(np.arange(len(slots)), lengths)
    positions = np.arange(num_rows) - (row_start - start)[entry_of_row]
    token_ids = np.empty(num_rows, np.int32)
    single = (lengths == 1) & (end == table.known[slots])
    token_ids[row_start[single]] = table.last_token[slots[single]]
    for e in np.flatnonzero(~single).tolist():
        tokens = table.sequences[int(slots[e])].tokens(int(start[e]), int(end[e]))
        token_ids[row_start[e] : row_end[e]] = tokens

    num_pages = int(-(-int(end.max()) // page_size))
    page_tables = table.table[slots, :num_pages]
    pages = page_tables[entry_of_row, positions // page_size].astype(np.int64)
    return StepPlan(
        step=step,
        entry_start=start.astype(np.int32),
        entry_length=lengths.astype(np.int32),
        entry_sequence=slots.astype(np.int32),
        entry_samples=end == table.known[slots],
        token_ids=token_ids,
        positions=positions.astype(np.int32),
        page_tables=page_tables,
        write_slots=pages * page_size + positions % page_size,
        spans=_spans(table, slots, start, end, row_start, row_end, alone),
    )


def _spans(
    table: SlotTable,
    slots: Int64Array,
    start: Int64Array,
    end: Int64Array,
    row_start: Int64Array,
    row_end: Int64Array,
    alone: BoolArray,
) -> AttentionSpans:
    """One span for each run of entries below a group's node, and one for each entry's own part.

    An entry of `alone` reads its prefix for itself and has no part in groups.

    Level by level from the root: a group's rows are contiguous because entries are in depth-first
    order, so run-length encoding the level's column finds them. An entry whose chunk begins before
    the node's end is computing the node and is not of the group. Deeper groups have fewer rows, so
    the levels an entry takes part in are always the first few.
    """
    own_start = np.zeros(len(slots), np.int64)
    in_groups = ~alone
    columns: list[tuple[Int64Array, Int64Array, Int64Array, Int64Array, Int64Array]] = []
    for level in range(table.group.shape[1]):
        node = table.group[slots, level]
        node_end = table.group_end[slots, level]
        in_groups &= (node != NO_GROUP) & (node_end <= start)
        if not in_groups.any():
            break
        label = np.where(in_groups, node, NO_GROUP)
        run_first = np.flatnonzero(np.diff(label, prepend=NO_GROUP - 1))
        run_last = np.append(run_first[1:], len(slots)) - 1
        rows = row_end[run_last] - row_start[run_first]
        kept = (label[run_first] != NO_GROUP) & (rows >= MIN_GROUP_ROWS)
        in_kept_run = np.repeat(kept, run_last - run_first + 1)
        in_groups &= in_kept_run
        first, last = run_first[kept], run_last[kept]
        columns.append((row_start[first], row_end[last], first, own_start[first], node_end[first]))
        own_start = np.where(in_groups, node_end, own_start)

    columns.append((row_start, row_end, np.arange(len(slots)), own_start, end))
    num_group_spans = sum(len(column[0]) for column in columns[:-1])
    merged = [np.concatenate(parts).astype(np.int32) for parts in zip(*columns, strict=True)]
    return AttentionSpans(
        row_start=merged[0],
        row_end=merged[1],
        entry=merged[2],
        kv_start=merged[3],
        kv_end=merged[4],
        causal=np.arange(len(merged[0])) >= num_group_spans,
    )


def _reads_alone(table: SlotTable, slots: Int64Array, lengths: Int64Array) -> BoolArray:
    """Whether each entry better reads its shared prefix for itself, [num_entries].

    Rows of one tile share a read. An entry whose rows fill tiles of their own reads its prefix as
    often alone as in a group, and alone its rows have no partial results to merge. What it loses is
    the part of a read that its last tile's free rows could have shared with others.
    """
    shared = np.zeros(len(slots), np.int64)  # keys of the entry's groups
    merges = np.zeros(len(slots), np.int64)  # partial results of each of its rows, beside its own
    in_groups = np.ones(len(slots), np.bool_)
    for level in range(table.group.shape[1]):
        node_end = table.group_end[slots, level]
        in_groups &= (table.group[slots, level] != NO_GROUP) & (node_end <= table.computed[slots])
        if not in_groups.any():
            break
        shared = np.where(in_groups, node_end, shared)
        merges += in_groups
    free_share = (-lengths % grouping.TILE_ROWS) / grouping.TILE_ROWS
    alone: BoolArray = free_share * shared < grouping.MERGE_COST_KEYS * merges * lengths
    return alone
