"""Chooses the fastest variant of an operation for a device.

Triton's kernels are imported when they are first used: not every platform has Triton.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from trunkline.kernels import (
    attention_native,
    elementwise,
    elementwise_native,
    sampling,
    sampling_native,
)
from trunkline.kernels.attention import AttentionWork, plan_attention
from trunkline.kernels.attention_cpu import cpu_tile
from trunkline.kernels.attention_cuda import matmul_tile
from trunkline.kernels.attention_tiles import run_attention
from trunkline.kernels.gpu.device_work import DeviceWork
from trunkline.kernels.gpu.launch import triton_for
from trunkline.kernels.native import native_for
from trunkline.kernels.spans import SpanList
from trunkline.kernels.work_list import WorkList, build_work_list


class AttentionPlan:
    """One step's attention, cut up once for all layers with the same window.

    How it is cut depends on the variant that runs, which is known with the first query.
    """

    def __init__(self, spans: SpanList, device: torch.device, window: int | None = None) -> None:
        """Plan `spans`.

        Args:
            spans: the step's spans.
            device: of the queries.
            window: a row sees only the last `window` positions up to its own; None: all.
        """
        self._spans = spans
        self._device = device
        self._window = window

    @functools.cached_property
    def work_list(self) -> WorkList:
        return build_work_list(self._spans, self._window, torch.get_num_threads())

    @functools.cached_property
    def tiles(self) -> AttentionWork:
        return plan_attention(self._spans, self._device, self._window)


@dataclass(frozen=True)
class ResidentAttention:
    """Attention whose work is in a GPU's memory, where launches find each step's in turn."""

    work: DeviceWork
    page_tables: Tensor  # [num_slots, max_pages] int32; the work's entries are rows of it


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    plan: AttentionPlan | ResidentAttention,
    scale: float,
) -> Tensor:
    """Attention of each row over its spans; see `reference.paged_attention`.

    Args:
        query: [num_rows, num_heads, head_dim]
        key_cache: [num_pages, page_size, num_kv_heads, head_dim]
        value_cache: like `key_cache`.
        plan: the step's attention.
        scale: multiplies the scores.

    Returns:
        [num_rows, num_heads, head_dim]
    """
    if isinstance(plan, ResidentAttention):
        from trunkline.kernels.gpu import attention as gpu  # noqa: PLC0415

        return gpu.paged_attention(
            query, key_cache, value_cache, plan.work, plan.page_tables, scale
        )
    native = native_for(query)
    if native is not None and attention_native.takes_head_dim(query.shape[-1]):
        return attention_native.paged_attention(
            native, query.contiguous(), key_cache, value_cache, plan.work_list, scale
        )
    kernel = cpu_tile if query.device.type == "cpu" else matmul_tile
    return run_attention(kernel, query, key_cache, value_cache, plan.tiles, scale)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`; x is [num_rows, size], contiguous."""
    if triton_for(x):
        from trunkline.kernels.gpu import add_rms_norm as gpu  # noqa: PLC0415

        if x.shape[-1] <= gpu.MAX_SIZE:
            return gpu.rms_norm(x, weight, eps)
    return elementwise.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`; x and residual are [num_rows, size], contiguous."""
    if triton_for(x):
        from trunkline.kernels.gpu import add_rms_norm as gpu  # noqa: PLC0415

        if x.shape[-1] <= gpu.MAX_SIZE:
            return gpu.add_rms_norm(x, residual, weight, eps)
    native = native_for(x)
    if native is None:
        return elementwise.add_rms_norm(x, residual, weight, eps)
    return elementwise_native.add_rms_norm(native, x, residual, weight, eps)


def rope_and_cache(
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
    """Normalise and rotate query and key, store key and value in their cache slots.

    `reference.rms_norm`, `reference.rope` and `reference.write_kv` one after the other.

    Args:
        qkv: [num_rows, num_heads + 2 * num_kv_heads, head_dim], contiguous: query, key, value.
        num_kv_heads: heads of the key, and of the value.
        qk_norm: [num_heads + num_kv_heads, head_dim] weights of the norm; None: no norm.
        eps: of the norm.
        cos: [num_rows, 1, head_dim] see `elementwise.rope`.
        signed_sin: like `cos`.
        key_cache: [num_pages, page_size, num_kv_heads, head_dim], written to.
        value_cache: like `key_cache`.
        slots: [num_rows] int64, page * page_size + offset; in Triton also -1, for a row that is
            padding and whose key and value are not stored.

    Returns:
        [num_rows, num_heads, head_dim] the query.
    """
    if triton_for(qkv):
        from trunkline.kernels.gpu import rope_and_cache as gpu  # noqa: PLC0415

        return gpu.rope_and_cache(
            qkv,
            num_kv_heads,
            qk_norm,
            eps,
            cos,
            signed_sin,
            key_cache,
            value_cache,
            slots,
        )
    native = native_for(qkv)
    if native is not None and qkv.shape[-1] <= elementwise_native.MAX_HEAD_DIM:
        return elementwise_native.rope_and_cache(
            native,
            qkv,
            num_kv_heads,
            qk_norm,
            eps,
            cos,
            signed_sin,
            key_cache,
            value_cache,
            slots,
        )
    rotated, value = torch.split(qkv, [qkv.shape[1] - num_kv_heads, num_kv_heads], 1)
    if qk_norm is not None:
        rotated = elementwise.rms_norm(rotated, qk_norm, eps)
    rotated = elementwise.rope(rotated, cos, signed_sin)
    query, key = torch.split(rotated, [rotated.shape[1] - num_kv_heads, num_kv_heads], 1)
    elementwise.write_kv(key, value, key_cache, value_cache, slots)
    return query


def silu_mul(gate_up: Tensor) -> Tensor:
    """See `reference.silu_mul`; gate_up is contiguous."""
    if triton_for(gate_up):
        from trunkline.kernels.gpu import silu_mul as gpu  # noqa: PLC0415

        return gpu.silu_mul(gate_up)
    native = native_for(gate_up)
    if native is None:
        return elementwise.silu_mul(gate_up)
    return elementwise_native.silu_mul(native, gate_up)


def sample_rows(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor
) -> Tensor:
    """See `reference.sample_rows`; all but the logits are contiguous."""
    if triton_for(logits):
        from trunkline.kernels.gpu import sampling as gpu  # noqa: PLC0415

        return gpu.sample_rows(logits, temperature, top_k, top_p, uniform)
    return sampling.sample_rows(logits, temperature, top_k, top_p, uniform)


def apply_token_masks(logits: Tensor, masks: Tensor, mask_of_row: Tensor) -> Tensor:
    """See `reference.apply_token_masks`; all are contiguous."""
    if triton_for(logits):
        from trunkline.kernels.gpu import token_masks as gpu  # noqa: PLC0415

        return gpu.apply_token_masks(logits, masks, mask_of_row)
    native = native_for(logits)
    if native is None:
        return sampling.apply_token_masks(logits, masks, mask_of_row)
    return sampling_native.apply_token_masks(native, logits, masks, mask_of_row)
