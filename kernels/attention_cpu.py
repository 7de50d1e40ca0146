"""Attention of one tile on a CPU, by PyTorch's fused kernel."""

from __future__ import annotations

import torch
from torch import Tensor

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def cpu_tile(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """See `attention_tiles.TileKernel`. Scores and sums are float32 in every dtype."""
    bias = None
    if mask is not None:
        bias = torch.where(mask, 0.0, -torch.inf).to(query.dtype)
        bias = bias.expand(*query.shape[:3], key.shape[2])
    out, lse = _flash(query, key, value, 0.0, causal, attn_mask=bias, scale=scale)
    return out, lse
