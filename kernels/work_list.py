"""The spans of one step as the items of an attention kernel.

A span is cut into items of like cost, so that workers (threads of a CPU, programs of a GPU) share
them evenly: into tiles of rows, and, where a few long spans would leave workers idle, along its
keys. A causal tile ends at the position of its last row. Items are listed by kind, the largest
tiles first, and by falling cost: workers take them from the front, and what is left at the end is
small.

Rows covered by one item are finished by it. For the others each item leaves partial results, one
after another in the order of the items, and a list says which of them belong to a row:

    item                 0            1         2
    rows                 [4 .. 8)     [4 .. 6)  [9]
    partial results      0 1 2 3      4 5       none: row 9 has no other item
    rows to merge        4: 0 4   5: 1 5   6: 2   7: 3
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trunkline.kernels.spans import SpanList

Int64Array = NDArray[np.int64]

ALL_POSITIONS = 2**62


@dataclass(frozen=True)
class Tiling:
    """How a kernel wants its items cut."""

    # Most rows of a tile of each kind, falling. A tile is of the last kind that holds it.
    kind_rows: tuple[int, ...]
    # Cost of a key, for each kind and for each row; only ratios matter.
    kind_key_cost: tuple[float, ...]
    row_key_cost: float
    # Tiles of a span are of like height; else all but the last are full.
    even_tiles: bool
    # Fewer keys than this are not split off.
    min_part_keys: int
    # Keys are split at positions divisible by this; at most min_part_keys.
    part_multiple: int
    # Items are cut so that a worker has at least so many of them, if they can be.
    items_per_worker: int


# 32 rows are enough to pay for packing the keys.
CPU_TILING = Tiling(
    kind_rows=(32,),
    kind_key_cost=(0,),
    row_key_cost=1,
    even_tiles=True,
    min_part_keys=256,
    part_multiple=1,
    items_per_worker=4,
)


@dataclass(frozen=True)
class WorkList:
    """One step's attention, the same for every layer with the same window."""

    # row_start, row_end, entry, kv_start, kv_end, causal, first partial result or -1
    items: Int64Array  # [num_items, 7]
    kind_ends: Int64Array  # [num_kinds] where the items of each kind of tile end
    positions: Int64Array  # [num_rows] token position
    page_tables: Int64Array  # [num_entries, max_pages]
    page_size: int  # tokens
    window: int  # positions that a row sees, its own included
    num_partials: int
    merged_rows: Int64Array  # [num_merged] rows with partial results
    merged_start: Int64Array  # [num_merged + 1] where a row's begin in merged_partials
    merged_partials: Int64Array  # [num_partials]

    @functools.cached_property
    def addresses(self) -> tuple[int, ...]:
        """Where items, positions, page tables and the three merge lists lie, for native code."""
        arrays = (
            self.items,
            self.positions,
            self.page_tables,
            self.merged_rows,
            self.merged_start,
            self.merged_partials,
        )
        return tuple(array.ctypes.data for array in arrays)


def build_work_list(
    spans: SpanList, window: int | None, num_workers: int, tiling: Tiling = CPU_TILING
) -> WorkList:
    """Cut `spans` into items.

    Args:
        spans: the step's spans.
        window: a row sees only the last `window` positions up to its own; None: all.
        num_workers: that will share the items.
        tiling: how the kernel wants them.
    """
    span, row_start, row_end = _row_tiles(spans, tiling)
    rising = tiling.kind_rows[::-1]
    kind = len(rising) - 1 - np.searchsorted(rising, row_end - row_start)
    kv_start, kv_end = spans.kv_start[span], spans.kv_end[span]
    causal = spans.causal[span]
    kv_end = np.where(causal, kv_end - (spans.row_end[span] - row_end), kv_end)
    if window is not None:
        # The lowest row of a tile sees furthest back. A tile that sees nothing keeps one key.
        bounds = np.stack([row_start, row_end], 1).ravel()
        lowest = np.minimum.reduceat(np.append(spans.positions, 0), bounds)[::2]
        kv_start = np.clip(lowest - window + 1, kv_start, kv_end - 1)
    key_cost = np.array(tiling.kind_key_cost)[kind] + tiling.row_key_cost * (row_end - row_start)
    tile, kv_start, kv_end = _key_ranges(key_cost, kv_start, kv_end, num_workers, tiling)

    order = np.lexsort((-key_cost[tile] * (kv_end - kv_start), kind[tile]))
    tile, kv_start, kv_end = tile[order], kv_start[order], kv_end[order]
    first_partial = np.full_like(tile, -1)
    columns = (row_start[tile], row_end[tile], spans.entry[span[tile]], kv_start, kv_end)
    items = np.stack([*columns, causal[tile], first_partial], 1)
    merged = _merge_lists(items, spans.num_rows)
    return WorkList(
        items=items,
        kind_ends=np.cumsum(np.bincount(kind[tile], minlength=len(rising))),
        positions=spans.positions,
        page_tables=np.ascontiguousarray(spans.page_tables),
        page_size=spans.page_size,
        window=ALL_POSITIONS if window is None else window,
        num_partials=len(merged[2]),
        merged_rows=merged[0],
        merged_start=merged[1],
        merged_partials=merged[2],
    )


def _row_tiles(spans: SpanList, tiling: Tiling) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Each tile's span, first row and last row (exclusive)."""
    num_rows = spans.row_end - spans.row_start
    most_rows = tiling.kind_rows[0]
    num_tiles = -(-num_rows // most_rows)
    span, index = _repeat(num_tiles)
    if tiling.even_tiles:
        start = index * num_rows[span] // num_tiles[span]
        end = (index + 1) * num_rows[span] // num_tiles[span]
    else:
        start = index * most_rows
        end = np.minimum(start + most_rows, num_rows[span])
    return span, spans.row_start[span] + start, spans.row_start[span] + end


def _key_ranges(
    key_cost: NDArray[np.float64],
    kv_start: Int64Array,
    kv_end: Int64Array,
    num_workers: int,
    tiling: Tiling,
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Each part's tile, first key and last key (exclusive)."""
    num_keys = kv_end - kv_start
    cost = key_cost * num_keys
    share = max(float(cost.sum()) // (num_workers * tiling.items_per_worker), 1.0)
    most_parts = np.maximum(num_keys // tiling.min_part_keys, 1)
    num_parts = np.minimum(np.ceil(cost / share).astype(np.int64), most_parts)
    tile, index = _repeat(num_parts)

    def boundary(index: Int64Array) -> Int64Array:
        position = kv_start[tile] + index * num_keys[tile] // num_parts[tile]
        is_inner = (index > 0) & (index < num_parts[tile])
        rounded: Int64Array = position - is_inner * (position % tiling.part_multiple)
        return rounded

    return tile, boundary(index), boundary(index + 1)


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
