"""Runs an AttentionWork with torch operations; a device brings the kernel for one tile.

`kernels.reference.paged_attention` is the specification.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from trunkline.kernels.attention import AttentionWork, LargeTile, PackedTile


class TileKernel(Protocol):
    """Attention of one tile."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Softmax attention with the log-sum-exp of the scores.

        Args:
            query: [batch, heads, num_rows, head_dim]
            key: [batch, heads, num_keys, head_dim], any strides but the last.
            value: like `key`.
            mask: broadcasts to [batch, heads, num_rows, num_keys]; False hides a key.
            causal: row i sees the keys up to i; num_rows == num_keys then.
            scale: multiplies the scores.

        Returns:
            (out [batch, heads, num_rows, head_dim], log-sum-exp [batch, heads, num_rows] float32)
        """
        ...


def run_attention(
    kernel: TileKernel,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    work: AttentionWork,
    scale: float,
) -> Tensor:
    """Attention of each row over its spans.

    Args:
        kernel: computes one tile.
        query: [num_rows, num_heads, head_dim]
        key_cache: [num_pages, page_size, num_kv_heads, head_dim]
        value_cache: like `key_cache`.
        work: the step's tiles.
        scale: multiplies the scores.

    Returns:
        [num_rows, num_heads, head_dim]
    """
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads = key_cache.shape[2]
    ratio = num_heads // num_kv_heads
    grouped = query.view(num_rows, num_kv_heads, ratio, head_dim)
    keys, values = key_cache.flatten(0, 1), value_cache.flatten(0, 1)
    gather = _Gather(keys, values, work.max_gathered_keys)

    num_partials = work.num_levels * num_rows
    # Levels that a row does not have weigh nothing: their log-sum-exp stays -inf. Their output is
    # multiplied by that weight all the same, so it must be a number.
    new = query.new_empty if work.num_levels == 1 else query.new_zeros
    out = new((num_partials + 1, num_kv_heads, ratio, head_dim))
    lse = torch.full(
        (num_partials + 1, num_kv_heads, ratio),
        -torch.inf,
        dtype=torch.float32,
        device=query.device,
    )
    kernel = _blanking(kernel) if work.may_see_nothing else kernel
    for large in work.large:
        _run_large(kernel, grouped, gather, large, out, lse, scale)
    for packed in work.packed:
        _run_packed(kernel, grouped, gather, packed, out, lse, scale)
    out, lse = out[:-1], lse[:-1]
    if work.num_levels > 1:
        out = _merge(out.view(-1, num_rows, *out.shape[1:]), lse.view(-1, num_rows, *lse.shape[1:]))
    return out.reshape(num_rows, num_heads, head_dim)


def _blanking(kernel: TileKernel) -> TileKernel:
    """`kernel`, but a row that sees no key weighs nothing, whatever the kernel makes of it."""

    def blanked(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        out, lse = kernel(query, key, value, mask, causal=causal, scale=scale)
        if mask is None:
            return out, lse
        sees = mask.any(-1).expand(lse.shape)
        return out.where(sees.unsqueeze(-1), 0.0), lse.where(sees, -torch.inf)

    return blanked


class _Gather:
    """Reads keys and values out of the cache, into the same memory for one tile after another."""

    def __init__(self, keys: Tensor, values: Tensor, max_keys: int) -> None:
        self._head_shape = keys.shape[1:]
        self._caches = (keys.flatten(1), values.flatten(1))  # [num_slots, num_kv_heads * head_dim]
        shape = (max_keys, self._caches[0].shape[1])
        self._gathered = (keys.new_empty(shape), values.new_empty(shape))

    def __call__(self, slots: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Key and value of each slot, [num_slots, num_kv_heads, head_dim]; valid until the next."""
        if isinstance(slots, slice):
            found = [cache[slots] for cache in self._caches]
        else:
            found = [target[: len(slots)] for target in self._gathered]
            for cache, target in zip(self._caches, found, strict=True):
                torch.index_select(cache, 0, slots, out=target)
        return found[0].view(-1, *self._head_shape), found[1].view(-1, *self._head_shape)


def _run_large(
    kernel: TileKernel,
    grouped: Tensor,
    gather: _Gather,
    tile: LargeTile,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> None:
    num_rows = tile.row_end - tile.row_start
    query = grouped[tile.row_start : tile.row_end].transpose(0, 1)  # [kv_heads, rows, ratio, d]
    key, value = (cached.transpose(0, 1) for cached in gather(tile.key_slots))
    ratio = query.shape[2]
    partials = slice(tile.first_partial, tile.first_partial + num_rows)
    if tile.causal or tile.mask is not None:
        # [kv_heads, ratio, rows, d]: a KV head is a batch entry, its keys are not copied.
        shape = (-1, ratio, -1, -1)
        part, part_lse = kernel(
            query.transpose(1, 2),
            key.unsqueeze(1).expand(shape),
            value.unsqueeze(1).expand(shape),
            tile.mask,
            causal=tile.causal,
            scale=scale,
        )
        out[partials] = part.permute(2, 0, 1, 3)
        lse[partials] = part_lse.permute(2, 0, 1)
        return
    folded = query.reshape(1, query.shape[0], num_rows * ratio, query.shape[3])
    part, part_lse = kernel(
        folded, key.unsqueeze(0), value.unsqueeze(0), None, causal=False, scale=scale
    )
    out[partials] = part[0].view(-1, num_rows, ratio, query.shape[3]).transpose(0, 1)
    lse[partials] = part_lse[0].view(-1, num_rows, ratio).transpose(0, 1)


def _run_packed(
    kernel: TileKernel,
    grouped: Tensor,
    gather: _Gather,
    tile: PackedTile,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> None:
    _, num_kv_heads, ratio, head_dim = grouped.shape
    query = grouped.index_select(0, tile.rows).view(
        tile.batch, tile.height, num_kv_heads, ratio, head_dim
    )
    folded = query.transpose(1, 2).reshape(tile.batch, num_kv_heads, tile.height * ratio, head_dim)
    key, value = (
        cached.view(tile.batch, tile.width, num_kv_heads, head_dim).transpose(1, 2)
        for cached in gather(tile.key_slots)
    )
    mask = None
    if tile.mask is not None:
        shape = (tile.batch, 1, tile.height, ratio, tile.width)
        mask = tile.mask.view(tile.batch, 1, tile.height, 1, tile.width).expand(shape).flatten(2, 3)
    part, part_lse = kernel(folded, key, value, mask, causal=False, scale=scale)
    part = part.view(tile.batch, num_kv_heads, tile.height, ratio, head_dim).transpose(1, 2)
    part_lse = part_lse.view(tile.batch, num_kv_heads, tile.height, ratio).transpose(1, 2)
    out.index_copy_(0, tile.partials, part.flatten(0, 1))
    lse.index_copy_(0, tile.partials, part_lse.flatten(0, 1))


def _merge(out: Tensor, lse: Tensor) -> Tensor:
    """Weigh the partial results of each level by their share of the softmax's sum.

    Args:
        out: [num_levels, num_rows, num_kv_heads, ratio, head_dim]
        lse: [num_levels, num_rows, num_kv_heads, ratio]
    """
    weight = torch.softmax(lse, dim=0).unsqueeze(-1)
    return (out * weight).sum(0).to(out.dtype)
