"""Chooses the fastest variant of an operation for a device."""

from __future__ import annotations

from torch import Tensor

from trunkline.kernels.attention import AttentionWork
from trunkline.kernels.attention_cpu import cpu_tile
from trunkline.kernels.attention_cuda import matmul_tile
from trunkline.kernels.attention_tiles import run_attention


def paged_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, work: AttentionWork, scale: float
) -> Tensor:
    """Attention of each row over its spans; see `attention_tiles.run_attention`."""
    kernel = cpu_tile if query.device.type == "cpu" else matmul_tile
    return run_attention(kernel, query, key_cache, value_cache, work, scale)
