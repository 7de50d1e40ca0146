"""The small operations by the compiled kernels in `cpu/elementwise.cpp`, each in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from trunkline.kernels.native import NativeLibrary

# kMaxHeadDim in the source.
MAX_HEAD_DIM = 512


def add_rms_norm(
    library: NativeLibrary, x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`; x and residual are [num_rows, size], contiguous."""
    normed, total = torch.empty_like(x), torch.empty_like(x)
    library.call(
        "add_rms_norm",
        x.dtype,
        x,
        residual,
        weight,
        eps,
        *x.shape,
        normed,
        total,
        torch.get_num_threads(),
    )
    return normed, total


def rope_and_cache(
    library: NativeLibrary,
    qkv: Tensor,
    num_kv_heads: int,
    qk_norm: Tensor | None,
    eps: float,
    cos: Tensor,
    signed_sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
) -> Tensor:
    """See `dispatch.rope_and_cache`; all tensors are contiguous."""
    num_rows, num_all_heads, head_dim = qkv.shape
    num_heads = num_all_heads - 2 * num_kv_heads
    query = qkv.new_empty(num_rows, num_heads, head_dim)
    library.call(
        "rope_and_cache",
        qkv.dtype,
        qkv,
        qk_norm,
        eps,
        cos,
        signed_sin,
        slots,
        num_rows,
        num_heads,
        num_kv_heads,
        head_dim,
        query,
        key_cache,
        value_cache,
        torch.get_num_threads(),
    )
    return query


def silu_mul(library: NativeLibrary, gate_up: Tensor) -> Tensor:
    """See `reference.silu_mul`; gate_up is contiguous."""
    num_rows, double_size = gate_up.shape
    out = gate_up.new_empty(num_rows, double_size // 2)
    library.call(
        "silu_mul",
        gate_up.dtype,
        gate_up,
        num_rows,
        double_size // 2,
        out,
        torch.get_num_threads(),
    )
    return out
