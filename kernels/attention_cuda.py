"""Attention of one tile on a GPU, with batched products; scores are made a block of rows a time."""

from __future__ import annotations

import torch
from torch import Tensor

# Elements of the score matrix that exist at once: 256 MiB of float32.
MAX_SCORES = 64 * 2**20


def matmul_tile(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """See `attention_tiles.TileKernel`. Runs on any device."""
    batch, heads, num_rows, _ = query.shape
    num_keys = key.shape[2]
    if mask is not None:
        mask = mask.expand(batch, heads, num_rows, num_keys)
    block = max(MAX_SCORES // (batch * heads * num_keys), 1)
    outs, lses = [], []
    for start in range(0, num_rows, block):
        rows = slice(start, min(start + block, num_rows))
        scores = torch.matmul(query[:, :, rows], key.transpose(2, 3)).float() * scale
        if causal:
            position = torch.arange(rows.start, rows.stop, device=query.device).unsqueeze(1)
            hidden = torch.arange(num_keys, device=query.device) > position
            scores.masked_fill_(hidden, -torch.inf)
        if mask is not None:
            scores.masked_fill_(~mask[:, :, rows], -torch.inf)
        lse = scores.logsumexp(-1)
        weights = (scores - lse.unsqueeze(-1)).exp().to(value.dtype)
        outs.append(torch.matmul(weights, value))
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)
