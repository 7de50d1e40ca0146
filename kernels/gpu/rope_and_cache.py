"""What lies between the QKV product and the attention, in one launch.

Query and key are normalised (where the model does) and rotated, the query is put out, key and value
go to their slot of the paged cache. A program does some heads of one row, be they of the query, the
key or the value, as two tiles: the first and the second halves of the heads, whose elements are
rotated in pairs.

A cache of float8 e4m3 is written as bytes, rounded by integer arithmetic: not every device has the
conversion, and this way all of them store the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trunkline.kernels.gpu.variant import Variant

# Elements in each of the two tiles: two 16-byte accesses of each of 32 lanes, or one of each of 64.
TILE_ELEMENTS = 1024
NUM_WARPS = 2

E4M3_MAX: tl.constexpr = tl.constexpr(448.0)
E4M3_MIN_NORMAL: tl.constexpr = tl.constexpr(2.0**-6)
# A float32 of this size has the spacing of e4m3's subnormal numbers, 2^-9.
E4M3_SUBNORMAL_SHIFT: tl.constexpr = tl.constexpr(2.0**14)


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
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> Tensor:
    """See `dispatch.rope_and_cache`.

    Args:
        qkv: [num_rows, num_heads + 2 * num_kv_heads, head_dim], contiguous: query, key, value.
        num_kv_heads: heads of the key, and of the value.
        qk_norm: [num_heads + num_kv_heads, head_dim] weights of the norm; None: no norm.
        eps: of the norm.
        cos: [num_rows, 1, head_dim] see `elementwise.rope`.
        signed_sin: like `cos`.
        key_cache: [num_pages, page_size, num_kv_heads, head_dim] in qkv's dtype or float8_e4m3fn,
            written to. The dimensions of a head lie side by side.
        value_cache: like `key_cache`, with the same strides.
        slots: [num_rows] int64, page * page_size + offset; -1: the row is padding, whose key and
            value are not stored.
        key_scale: what a stored float8 key is multiplied by to give the key.
        value_scale: the same for the value.

    Returns:
        [num_rows, num_heads, head_dim] the query.
    """
    num_rows, num_all_heads, head_dim = qkv.shape
    num_heads = num_all_heads - 2 * num_kv_heads
    query = qkv.new_empty(num_rows, num_heads, head_dim)
    if num_rows == 0:
        return query
    is_fp8 = key_cache.dtype == torch.float8_e4m3fn
    if is_fp8:
        key_cache, value_cache = key_cache.view(torch.uint8), value_cache.view(torch.uint8)
    constexprs = _constexprs(head_dim, is_fp8=is_fp8)
    rope_and_cache_kernel[(num_rows, triton.cdiv(num_all_heads, constexprs["block_heads"]))](
        qkv,
        qk_norm,
        cos,
        signed_sin,
        slots,
        query,
        key_cache,
        value_cache,
        eps,
        1.0 / key_scale,
        1.0 / value_scale,
        num_heads,
        num_kv_heads,
        key_cache.shape[1],
        key_cache.stride(0),
        key_cache.stride(1),
        key_cache.stride(2),
        **constexprs,
        num_warps=NUM_WARPS,
    )
    return query


def _constexprs(head_dim: int, *, is_fp8: bool) -> dict[str, int]:
    padded_half = triton.next_power_of_2(head_dim // 2)
    return {
        "head_dim": head_dim,
        "padded_half": padded_half,
        "block_heads": max(TILE_ELEMENTS // padded_half, 1),
        "is_fp8": is_fp8,
    }


@triton.jit
def rope_and_cache_kernel(
    qkv: tl.tensor,  # [num_rows, num_heads + 2 * num_kv_heads, head_dim]
    qk_norm: tl.tensor,  # [num_heads + num_kv_heads, head_dim] or None
    cos: tl.tensor,  # [num_rows, head_dim]
    signed_sin: tl.tensor,  # [num_rows, head_dim]
    slots: tl.tensor,  # [num_rows]
    query: tl.tensor,  # [num_rows, num_heads, head_dim]
    key_cache: tl.tensor,  # [num_pages, page_size, num_kv_heads, head_dim]
    value_cache: tl.tensor,  # like key_cache
    eps: tl.tensor,
    inverse_key_scale: tl.tensor,
    inverse_value_scale: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    page_size: tl.tensor,
    page_stride: tl.tensor,
    slot_stride: tl.tensor,
    kv_head_stride: tl.tensor,
    head_dim: tl.constexpr,
    padded_half: tl.constexpr,
    block_heads: tl.constexpr,
    is_fp8: tl.constexpr,
) -> None:
    """A block of heads of one row."""
    half: tl.constexpr = head_dim // 2
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * block_heads + tl.arange(0, block_heads)[:, None]
    dim = tl.arange(0, padded_half)[None, :]
    num_rotated = num_heads + num_kv_heads
    is_dim = dim < half
    is_element = (head < num_rotated + num_kv_heads) & is_dim
    is_rotated = (head < num_rotated) & is_dim

    from_at = qkv + (row * (num_rotated + num_kv_heads) + head) * head_dim + dim
    first = tl.load(from_at, mask=is_element, other=0.0)
    second = tl.load(from_at + half, mask=is_element, other=0.0)
    dtype: tl.constexpr = first.dtype
    low, high = first.to(tl.float32), second.to(tl.float32)
    if qk_norm is not None:
        mean = tl.sum(low * low + high * high, axis=1, keep_dims=True) / head_dim
        factor = tl.rsqrt(mean + eps)
        weight_at = qk_norm + head * head_dim + dim
        low_weight = tl.load(weight_at, mask=is_rotated, other=0.0).to(tl.float32)
        high_weight = tl.load(weight_at + half, mask=is_rotated, other=0.0).to(tl.float32)
        # Rounded where the reference rounds.
        low = ((low * factor).to(dtype).to(tl.float32) * low_weight).to(dtype).to(tl.float32)
        high = ((high * factor).to(dtype).to(tl.float32) * high_weight).to(dtype).to(tl.float32)
    angle_at = row * head_dim + dim
    low_cos = tl.load(cos + angle_at, mask=is_dim, other=0.0).to(tl.float32)
    high_cos = tl.load(cos + angle_at + half, mask=is_dim, other=0.0).to(tl.float32)
    low_sin = tl.load(signed_sin + angle_at, mask=is_dim, other=0.0).to(tl.float32)
    high_sin = tl.load(signed_sin + angle_at + half, mask=is_dim, other=0.0).to(tl.float32)
    first = tl.where(is_rotated, (low * low_cos + high * low_sin).to(dtype), first)
    second = tl.where(is_rotated, (high * high_cos + low * high_sin).to(dtype), second)

    is_query = (head < num_heads) & is_dim
    query_at = query + (row * num_heads + head) * head_dim + dim
    tl.store(query_at, first, mask=is_query)
    tl.store(query_at + half, second, mask=is_query)

    slot = tl.load(slots + row)
    if slot >= 0:
        slot_at = slot // page_size * page_stride + slot % page_size * slot_stride
        is_key = is_rotated & (head >= num_heads)
        is_value = is_element & (head >= num_rotated)
        key_at = key_cache + slot_at + (head - num_heads) * kv_head_stride + dim
        value_at = value_cache + slot_at + (head - num_rotated) * kv_head_stride + dim
        if is_fp8:
            inverse_scale = tl.where(is_key, inverse_key_scale, inverse_value_scale)
            first_bits = _e4m3_bits(first.to(tl.float32) * inverse_scale)
            second_bits = _e4m3_bits(second.to(tl.float32) * inverse_scale)
            tl.store(key_at, first_bits, mask=is_key)
            tl.store(key_at + half, second_bits, mask=is_key)
            tl.store(value_at, first_bits, mask=is_value)
            tl.store(value_at + half, second_bits, mask=is_value)
        else:
            tl.store(key_at, first, mask=is_key)
            tl.store(key_at + half, second, mask=is_key)
            tl.store(value_at, first, mask=is_value)
            tl.store(value_at + half, second, mask=is_value)


@triton.jit
def _e4m3_bits(x: tl.tensor) -> tl.tensor:
    """The bits of the nearest e4m3 number, ties to even; of the largest beyond its range."""
    x_bits = x.to(tl.uint32, bitcast=True)
    magnitude = tl.minimum(tl.abs(x), E4M3_MAX)
    bits = magnitude.to(tl.uint32, bitcast=True)
    # The exponent's bias is 7 instead of 127, the mantissa 3 bits instead of 23.
    rounded = bits + 0x7FFFF + ((bits >> 20) & 1)
    normal = (rounded >> 20) - ((127 - 7) << 3)
    subnormal = (magnitude + E4M3_SUBNORMAL_SHIFT).to(tl.uint32, bitcast=True) & 0xFF
    code = tl.where(magnitude < E4M3_MIN_NORMAL, subnormal, normal)
    code = tl.where((x_bits & 0x7FFFFFFF) > 0x7F800000, 0x7F, code)  # not a number
    sign = (x_bits >> 24) & 0x80
    return (code | sign).to(tl.uint8)


def variants() -> list[Variant]:
    """Of every head size with a norm, which takes more registers; of one without."""
    return [
        _variant(head_dim, dtype, has_norm=has_norm, is_fp8=is_fp8)
        for head_dim, has_norm in (
            (64, True),
            (80, True),
            (96, True),
            (128, False),
            (128, True),
            (256, True),
        )
        for dtype, is_fp8 in (("bf16", False), ("bf16", True), ("fp32", False))
    ]


def _variant(head_dim: int, dtype: str, *, has_norm: bool, is_fp8: bool) -> Variant:
    element, cached = f"*{dtype}", "*u8" if is_fp8 else f"*{dtype}"
    norm = {"qk_norm": element} if has_norm else {}
    return Variant(
        name=f"rope_and_cache_{dtype}{'_fp8' if is_fp8 else ''}_{head_dim}"
        + ("_norm" if has_norm else ""),
        kernel=rope_and_cache_kernel,
        signature={
            "qkv": element,
            **norm,
            "cos": element,
            "signed_sin": element,
            "slots": "*i64",
            "query": element,
            "key_cache": cached,
            "value_cache": cached,
            **dict.fromkeys(("eps", "inverse_key_scale", "inverse_value_scale"), "fp32"),
            **dict.fromkeys(("num_heads", "num_kv_heads"), "i32"),
            **dict.fromkeys(
                ("page_size", "page_stride", "slot_stride", "kv_head_stride"), "i32:16"
            ),
        },
        constexprs={
            **({} if has_norm else {"qk_norm": None}),
            **_constexprs(head_dim, is_fp8=is_fp8),
        },
        num_warps=NUM_WARPS,
    )
