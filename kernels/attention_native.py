"""Paged attention by the compiled kernel in `cpu/attention.cpp`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from trunkline.kernels.native import NativeLibrary
from trunkline.kernels.work_list import WorkList

# Elements of a head that the kernel handles at once.
HEAD_DIM_MULTIPLE = 16


class _Step(ctypes.Structure):
    """`Step` in cpu/attention.cpp, field by field."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in (
            "query",
            "key_cache",
            "value_cache",
            "out",
            "partial_out",
            "partial_lse",
            "items",
            "positions",
            "page_tables",
            "merged_rows",
            "merged_start",
            "merged_partials",
        )
    ] + [
        (name, ctypes.c_int64)
        for name in (
            "num_items",
            "num_merged",
            "max_pages",
            "page_size",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "window",
            "num_threads",
        )
    ] + [("scale", ctypes.c_double)]  # fmt: skip


def takes_head_dim(head_dim: int) -> bool:
    """Whether the kernel works on heads of this size."""
    return head_dim % HEAD_DIM_MULTIPLE == 0


def paged_attention(
    library: NativeLibrary,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    work: WorkList,
    scale: float,
) -> Tensor:
    """Attention of each row over its spans; see `reference.paged_attention`.

    Args:
        library: the compiled kernels.
        query: [num_rows, num_heads, head_dim], contiguous; float32 or bfloat16.
        key_cache: [num_pages, page_size, num_kv_heads, head_dim], contiguous.
        value_cache: like `key_cache`.
        work: the step's items.
        scale: multiplies the scores.

    Returns:
        [num_rows, num_heads, head_dim] in the query's dtype.
    """
    _, num_heads, head_dim = query.shape
    out = torch.empty_like(query)
    partial_out = torch.empty(work.num_partials, num_heads, head_dim)
    partial_lse = torch.empty(work.num_partials, num_heads)
    step = _Step(
        query.data_ptr(),
        key_cache.data_ptr(),
        value_cache.data_ptr(),
        out.data_ptr(),
        partial_out.data_ptr(),
        partial_lse.data_ptr(),
        *work.addresses,
        len(work.items),
        len(work.merged_rows),
        work.page_tables.shape[1],
        work.page_size,
        num_heads,
        key_cache.shape[2],
        head_dim,
        work.window,
        torch.get_num_threads(),
        scale,
    )
    library.call("attention", query.dtype, step)
    return out
