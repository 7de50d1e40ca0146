"""The spans of one step as the items of the native attention kernel.

A span is cut into items of like cost, so that threads share them evenly: into tiles of rows, and,
where a few long spans would leave threads idle, along its keys. A causal tile ends at the position
of its last row. Items are listed by falling cost: threads take them from the front, and what is
left at the end is small.

Rows covered by one item are finished by it. For the others each item leaves partial results, one
after another in the order of the items, and a list says which of them belong to a row:

    item                 0            1         2
    rows                 [4 .. 8)     [4 .. 6)  [9]
    partial results      0 1 2 3      4 5       none: row 9 has no other item
    rows to merge        4: 0 4   5: 1 5   6: 2   7: 3
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trunkline.kernels.spans import SpanList

Int64Array = NDArray[np.int64]

# Rows of an item: enough to pay for packing its keys.
TILE_ROWS = 32
# Fewer keys than this are not split off.
MIN_ITEM_KEYS = 256
# Items are cut so that a thread has at least so many of them, if they can be.
ITEMS_PER_THREAD = 4
ALL_POSITIONS = 2**62


@dataclass(frozen=True)
class WorkList:
    """One step's attention, the same for every layer with the same window."""

    # row_start, row_end, entry, kv_start, kv_end, causal, first partial result or -1
    items: Int64Array  # [num_items, 7]
    positions: Int64Array  # [num_rows] token position
    page_tables: Int64Array  # [num_entries, max_pages]
    page_size: int  # tokens
    window: int  # positions that a row sees, its own included
    num_partials: int
    merged_rows: Int64Array  # [num_merged] rows with partial results
    merged_start: Int64Array  # [num_merged + 1] where a row's begin in merged_partials
    merged_partials: Int64Array  # [num_partials]


def build_work_list(spans: SpanList, window: int | None, num_threads: int) -> WorkList:
    """Cut `spans` into items.

    Args:
        spans: the step's spans.
        window: a row sees only the last `window` positions up to its own; None: all.
        num_threads: that will share the items.
    """
    span, row_start, row_end = _row_tiles(spans)
    kv_start, kv_end = spans.kv_start[span], spans.kv_end[span]
    causal = spans.causal[span]
    kv_end = np.where(causal, kv_end - (spans.row_end[span] - row_end), kv_end)
    if window is not None:
        # The lowest row of a tile sees furthest back. A tile that sees nothing keeps one key.
        bounds = np.stack([row_start, row_end], 1).ravel()
        lowest = np.minimum.reduceat(np.append(spans.positions, 0), bounds)[::2]
        kv_start = np.clip(lowest - window + 1, kv_start, kv_end - 1)
    item, kv_start, kv_end = _key_ranges(row_end - row_start, kv_start, kv_end, num_threads)
    row_start, row_end, span, causal = row_start[item], row_end[item], span[item], causal[item]

    order = np.argsort(-(row_end - row_start) * (kv_end - kv_start), kind="stable")
    items = np.stack(
        [row_start, row_end, spans.entry[span], kv_start, kv_end, causal, np.full_like(span, -1)], 1
    )[order]
    merged = _merge_lists(items, spans.num_rows)
    return WorkList(
        items=items,
        positions=spans.positions,
        page_tables=np.ascontiguousarray(spans.page_tables),
        page_size=spans.page_size,
        window=ALL_POSITIONS if window is None else window,
        num_partials=len(merged[2]),
        merged_rows=merged[0],
        merged_start=merged[1],
        merged_partials=merged[2],
    )


def _row_tiles(spans: SpanList) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Each tile's span, first row and last row (exclusive); tiles of a span are of like height."""
    num_rows = spans.row_end - spans.row_start
    num_tiles = -(-num_rows // TILE_ROWS)
    span, index = _repeat(num_tiles)
    start = spans.row_start[span] + index * num_rows[span] // num_tiles[span]
    end = spans.row_start[span] + (index + 1) * num_rows[span] // num_tiles[span]
    return span, start, end


def _key_ranges(
    num_rows: Int64Array, kv_start: Int64Array, kv_end: Int64Array, num_threads: int
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Each part's tile, first key and last key (exclusive)."""
    num_keys = kv_end - kv_start
    cost = num_rows * num_keys
    share = max(int(cost.sum()) // (num_threads * ITEMS_PER_THREAD), 1)
    num_parts = np.minimum(-(-cost // share), np.maximum(num_keys // MIN_ITEM_KEYS, 1))
    tile, index = _repeat(num_parts)
    start = kv_start[tile] + index * num_keys[tile] // num_parts[tile]
    end = kv_start[tile] + (index + 1) * num_keys[tile] // num_parts[tile]
    return tile, start, end


def _repeat(counts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """For counts [2, 3]: the owners [0, 0, 1, 1, 1] and the indices [0, 1, 0, 1, 2]."""
    owner = np.repeat(np.arange(len(counts)), counts)
    index = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owner, index


def _merge_lists(items: Int64Array, num_rows: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Give each item that shares rows its place among the partial results, in `items`.

    Returns:
        merged_rows, merged_start and merged_partials of the WorkList.
    """
    row_start, row_end = items[:, 0], items[:, 1]
    # Items that begin at or before a row, less those that end there.
    change = np.bincount(row_start, minlength=num_rows + 1)
    change -= np.bincount(row_end, minlength=num_rows + 1)
    is_shared = np.cumsum(change)[:num_rows] > 1
    before = np.concatenate([[0], np.cumsum(is_shared)])
    shares = np.flatnonzero(before[row_end] > before[row_start])
    sizes = (row_end - row_start)[shares]
    items[shares, 6] = np.cumsum(sizes) - sizes
    owner, index = _repeat(sizes)
    row_of_partial = row_start[shares][owner] + index
    order = np.argsort(row_of_partial, kind="stable")
    rows, start = np.unique(row_of_partial[order], return_index=True)
    return rows, np.append(start, len(order)).astype(np.int64), order.astype(np.int64)
