"""Paged attention as a list of tiles: the work of one step, built once, run by every layer.

A tile is a rectangle of the attention matrix: rows (query tokens) times keys. The spans of a step
become tiles of two kinds:

    large   one span with many rows, or its causal corner: one call of a fused kernel, no mask
    packed  many spans with few rows each (decode, short chunks, small groups), padded to one
            height and one width and computed as one batch; a mask hides what is padding

The query heads that share a KV head are folded into the rows of a tile, so that products are
large and keys are read once for all of them. Each tile yields a partial result and its
log-sum-exp, stored in the partial slot of its row; a row has one slot for each *level* of spans
that covers it, and the levels are merged at the end:

    partial slot   level * num_rows + row        the last slot of all takes what padding computes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trunkline.kernels.spans import SpanList

Int64Array = NDArray[np.int64]

# A span with at least this many rows is a tile of its own.
LARGE_TILE_ROWS = 64
# Keys that one packed tile gathers: about what stays in a core's share of the cache.
PACKED_TILE_KEYS = 8192
# A packed tile is cut when its shortest member has fewer than this share of its width in keys.
MIN_PACKED_FILL = 0.8


@dataclass(frozen=True)
class LargeTile:
    """All keys for all rows, or the causal square whose rows and keys are the same positions."""

    row_start: int
    row_end: int
    first_partial: int  # partial slot of row_start
    # Cache slots of the keys: a range where they are consecutive, else a tensor [num_keys].
    key_slots: slice | Tensor
    num_keys: int
    causal: bool
    mask: Tensor | None  # [num_rows, num_keys] bool, what a row may see; None: all (or causal)


@dataclass(frozen=True)
class PackedTile:
    """A batch of small tiles of like size."""

    rows: Tensor  # [batch * height] row
    partials: Tensor  # [batch * height] partial slot
    key_slots: Tensor  # [batch * width] cache slot; padding repeats the member's first key
    batch: int
    height: int  # rows of each member
    width: int  # keys of each member
    mask: Tensor | None  # [batch, height, width] bool, what a row may see; None: all


@dataclass(frozen=True)
class AttentionWork:
    """One step's attention, the same for every layer with the same window."""

    num_rows: int
    num_levels: int
    large: tuple[LargeTile, ...]
    packed: tuple[PackedTile, ...]
    # A row may see no key of a span that it belongs to: only with a sliding window.
    may_see_nothing: bool

    @property
    def max_gathered_keys(self) -> int:
        """The most keys that a tile gathers from the cache."""
        sizes = [tile.batch * tile.width for tile in self.packed]
        sizes += [t.num_keys for t in self.large if isinstance(t.key_slots, Tensor)]
        return max(sizes, default=0)


def plan_attention(
    spans: SpanList, device: torch.device, window: int | None = None
) -> AttentionWork:
    """Cut `spans` into tiles.

    Args:
        spans: the step's spans.
        device: where the tensors of the tiles are put.
        window: a row sees only the last `window` positions up to its own; None: all.
    """
    level = _levels(spans)
    kv_start = spans.kv_start.astype(np.int64)
    if window is not None:
        # The lowest row of a span sees furthest back. A span that nobody sees keeps one key.
        rows = zip(spans.row_start.tolist(), spans.row_end.tolist(), strict=True)
        lowest = np.array([spans.positions[start:end].min() for start, end in rows])
        furthest = lowest - window + 1
        kv_start = np.clip(kv_start, np.maximum(furthest, 0), spans.kv_end - 1)
    num_rows = spans.row_end - spans.row_start
    is_large = num_rows >= LARGE_TILE_ROWS

    large: list[LargeTile] = []
    num_levels = int(level.max()) + 1
    for i in np.flatnonzero(is_large).tolist():
        tiles = _large_tiles(spans, i, int(kv_start[i]), int(level[i]), device, window)
        num_levels = max(num_levels, int(level[i]) + len(tiles))
        large += tiles
    packed = _packed_tiles(
        spans, np.flatnonzero(~is_large), kv_start, level, num_levels, device, window
    )
    return AttentionWork(
        num_rows=spans.num_rows,
        num_levels=num_levels,
        large=tuple(large),
        packed=tuple(packed),
        may_see_nothing=window is not None,
    )


def _levels(spans: SpanList) -> Int64Array:
    """[num_spans] how many earlier spans cover the same rows.

    Causal spans, which are many, have disjoint rows and are all counted at once, after the others.
    """
    depth = np.zeros(spans.num_rows, np.int64)
    level = np.zeros(spans.num_spans, np.int64)
    for i in np.flatnonzero(~spans.causal).tolist():
        rows = slice(spans.row_start[i], spans.row_end[i])
        level[i] = depth[rows].max()
        depth[rows] = level[i] + 1
    for i in np.flatnonzero(spans.causal & (spans.row_end - spans.row_start > 1)).tolist():
        level[i] = depth[spans.row_start[i] : spans.row_end[i]].max()
    single = spans.causal & (spans.row_end - spans.row_start == 1)
    level[single] = depth[spans.row_start[single]]
    return level


def _large_tiles(
    spans: SpanList,
    span: int,
    kv_start: int,
    level: int,
    device: torch.device,
    window: int | None,
) -> list[LargeTile]:
    row_start, row_end = int(spans.row_start[span]), int(spans.row_end[span])
    kv_end = int(spans.kv_end[span])
    positions = spans.positions[row_start:row_end]
    windowed = window is not None and int(positions.max()) - window >= kv_start
    # The causal corner: the keys that are the rows' own positions.
    corner = kv_end - (row_end - row_start) if spans.causal[span] else kv_end
    parts = [(kv_start, corner, False), (corner, kv_end, True)]
    tiles: list[LargeTile] = []
    for start, end, causal in parts:
        if start >= end:
            continue
        mask = None
        if windowed:
            keys = np.arange(start, end)
            visible = keys > positions[:, None] - (window or 0)
            if causal:
                visible &= keys <= positions[:, None]
            mask = torch.from_numpy(visible).to(device)
        tiles.append(
            LargeTile(
                row_start=row_start,
                row_end=row_end,
                first_partial=(level + len(tiles)) * spans.num_rows + row_start,
                key_slots=_key_slots(spans, span, start, end, device),
                num_keys=end - start,
                causal=causal and mask is None,
                mask=mask,
            )
        )
    return tiles


def _key_slots(
    spans: SpanList, span: int, start: int, end: int, device: torch.device
) -> slice | Tensor:
    size = spans.page_size
    pages = spans.page_tables[spans.entry[span], start // size : -(-end // size)]
    if (np.diff(pages) == 1).all():
        first = int(pages[0]) * size + start % size
        return slice(first, first + end - start)
    positions = np.arange(start, end)
    slots = pages[positions // size - start // size] * size + positions % size
    return torch.from_numpy(slots.astype(np.int64)).to(device)


def _packed_tiles(
    spans: SpanList,
    members: Int64Array,
    kv_start: Int64Array,
    level: Int64Array,
    num_levels: int,
    device: torch.device,
    window: int | None,
) -> list[PackedTile]:
    """Sort the small spans by height and width and cut the list where either changes much."""
    num_rows = (spans.row_end - spans.row_start)[members]
    num_keys = (spans.kv_end - kv_start)[members]
    height = (2 ** np.ceil(np.log2(np.maximum(num_rows, 1)))).astype(np.int64)
    order = np.lexsort((-num_keys, -height))
    members, num_keys, height = members[order], num_keys[order], height[order]
    tiles = []
    first = 0
    while first < len(members):
        width = int(num_keys[first])
        limit = first + max(PACKED_TILE_KEYS // width, 1)
        fits = (height[first:limit] == height[first]) & (
            num_keys[first:limit] >= MIN_PACKED_FILL * width
        )
        last = first + (len(fits) if fits.all() else int(np.argmin(fits)))
        tiles.append(
            _packed_tile(spans, members[first:last], kv_start, level, num_levels, device, window)
        )
        first = last
    return tiles


def _packed_tile(
    spans: SpanList,
    members: Int64Array,
    kv_start: Int64Array,
    level: Int64Array,
    num_levels: int,
    device: torch.device,
    window: int | None,
) -> PackedTile:
    row_start, row_end = spans.row_start[members], spans.row_end[members]
    start, end = kv_start[members], spans.kv_end[members]
    height = int((row_end - row_start).max())
    width = int((end - start).max())

    rows = row_start[:, None] + np.arange(height)
    is_row = rows < row_end[:, None]
    rows = np.where(is_row, rows, row_start[:, None])
    partials = np.where(is_row, level[members][:, None] * spans.num_rows + rows, -1)
    partials[~is_row] = num_levels * spans.num_rows

    keys = start[:, None] + np.arange(width)  # [batch, width] position
    is_key = keys < end[:, None]
    keys = np.where(is_key, keys, start[:, None])
    size = spans.page_size
    pages = spans.page_tables[spans.entry[members][:, None], keys // size]
    slots = pages * size + keys % size

    positions = spans.positions[rows][:, :, None]  # [batch, height, 1]
    visible = np.broadcast_to(is_key[:, None, :], (len(members), height, width))
    causal = spans.causal[members][:, None, None]
    if height > 1 and causal.any():
        visible = visible & (~causal | (keys[:, None, :] <= positions))
    if window is not None:
        visible = visible & (keys[:, None, :] > positions - window)
    mask = None if visible.all() else torch.from_numpy(np.array(visible)).to(device)
    return PackedTile(
        rows=torch.from_numpy(rows.ravel()).to(device),
        partials=torch.from_numpy(partials.ravel()).to(device),
        key_slots=torch.from_numpy(slots.astype(np.int64).ravel()).to(device),
        batch=len(members),
        height=height,
        width=width,
        mask=mask,
    )
