"""Paged attention in Triton: one persistent launch over the work list, one to merge.

The twin of `cpu/attention.cpp`, and cut by the same `work_list`. An item is a rectangle of the
attention matrix: some rows (query tokens), a range of the positions of one page table. The query
heads that share a KV head are the *lines* of its tile: line i is head i % ratio of row i / ratio.

A tile has 128, 64 or 16 lines (its kind), which the compiler must know. Every program takes items
of all kinds, so decode, prefill chunks and shared prefixes run side by side. Items of a kind are
listed by falling cost, and the programs go along the list to and fro, so that each gets its share:

    program           0    1    2
    round 0           0    1    2      the costliest
    round 1           5    4    3
    round 2           6    7    8

How many items there are is read from the device, so that a captured launch replays any list.

The maximum and the sum of each line are kept in float32 and in base 2 (online softmax). Blocks of
keys that every line sees are done first and without a mask, the edges after them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trunkline.kernels.gpu.device_work import DeviceWork
from trunkline.kernels.gpu.merge import merge_partials
from trunkline.kernels.gpu.tuning import FP8, Launch

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
# Behind every position.
FAR: tl.constexpr = tl.constexpr(2**30)
# Below every score, but finite, so that differences of maxima are numbers.
NO_MAXIMUM: tl.constexpr = tl.constexpr(-1e30)
# What e4m3 bits, moved into the fields of a float16, have to be multiplied by.
FP8_BITS_SCALE = 256.0


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    work: DeviceWork,
    page_tables: Tensor,
    scale: float,
    *,
    soft_cap: float | None = None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> Tensor:
    """Attention of each row over its spans; see `reference.paged_attention`.

    Rows that no span covers are left as they were allocated.

    Args:
        query: [num_rows, num_heads, head_dim]; bfloat16, float16 or float32. Dimensions of a head
            lie side by side.
        key_cache: [num_pages, page_size, num_kv_heads, head_dim] in the query's dtype or
            float8_e4m3fn.
        value_cache: like `key_cache`.
        work: the step's items.
        page_tables: [num_entries, max_pages] int32 page; a span's entry is a row of it.
        scale: multiplies the scores.
        soft_cap: scores s become soft_cap * tanh(s / soft_cap); None: they stay.
        key_scale: multiplies the cached keys.
        value_scale: multiplies the cached values.

    Returns:
        [num_rows, num_heads, head_dim] in the query's dtype.
    """
    work.check(query, key_cache)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if key_cache.dtype == FP8 and work.tuning.reads_fp8_as_bits:
        key_cache, value_cache = key_cache.view(torch.uint8), value_cache.view(torch.uint8)
        key_scale, value_scale = key_scale * FP8_BITS_SCALE, value_scale * FP8_BITS_SCALE
    num_kv_heads, head_dim = key_cache.shape[2:]

    def launch(shape: Launch) -> None:
        attention_kernel[(work.num_processors * shape.programs_per_processor,)](
            query,
            key_cache,
            value_cache,
            out,
            work.partial_out,
            work.partial_lse,
            work.lists,
            page_tables,
            scale * key_scale,
            0.0 if soft_cap is None else soft_cap,
            value_scale,
            query.stride(0),
            query.stride(1),
            key_cache.stride(0),
            key_cache.stride(1),
            key_cache.stride(2),
            page_tables.stride(0),
            num_kv_heads,
            work.window_positions,
            **shape.constexprs(
                work.tuning.precision,
                key_cache.shape[1],
                head_dim,
                has_soft_cap=soft_cap is not None,
            ),
            num_warps=shape.num_warps,
            num_stages=shape.num_stages,
            enable_fp_fusion=True,
        )

    work.launch_all(launch)
    merge_partials(out, work)
    return out


# Not specialised on the values of arguments that differ from step to step and model to model.
@triton.jit(do_not_specialize=["table_stride", "num_kv_heads", "window"])
def attention_kernel(
    query: tl.tensor,  # [num_rows, num_heads, head_dim]
    key_cache: tl.tensor,  # [num_pages, page_size, num_kv_heads, head_dim]
    value_cache: tl.tensor,  # like key_cache
    out: tl.tensor,  # [num_rows, num_heads, head_dim], contiguous
    partial_out: tl.tensor,  # [num_partials, num_heads, head_dim], contiguous
    partial_lse: tl.tensor,  # [num_partials, num_heads], base 2, contiguous
    lists: tl.tensor,  # see DeviceWork
    page_tables: tl.tensor,  # [num_entries, max_pages]
    scale: tl.tensor,
    soft_cap: tl.tensor,
    value_scale: tl.tensor,
    query_row_stride: tl.tensor,
    query_head_stride: tl.tensor,
    page_stride: tl.tensor,
    slot_stride: tl.tensor,
    kv_head_stride: tl.tensor,
    table_stride: tl.tensor,
    num_kv_heads: tl.tensor,
    window: tl.tensor,
    page_size: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    has_soft_cap: tl.constexpr,
    precision: tl.constexpr,
    first_kind: tl.constexpr,
    kind_lines: tl.constexpr,
    kind_keys: tl.constexpr,
) -> None:
    """Each program's share of the items, for each KV head."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    kind_start = 0 if first_kind == 0 else tl.load(lists + 5 + first_kind) * num_kv_heads
    # A loop for each kind, the large tiles' first: what the compiler moves out of a loop over all
    # kinds would not fit the registers.
    for kind in tl.static_range(len(kind_lines)):
        kind_end = tl.load(lists + 6 + first_kind + kind) * num_kv_heads
        for turn in range(kind_start // num_programs, tl.cdiv(kind_end, num_programs)):
            place = tl.where(turn % 2 == 1, num_programs - 1 - program, program)
            tile = turn * num_programs + place
            if tile >= kind_start and tile < kind_end:
                _attend(
                    query,
                    key_cache,
                    value_cache,
                    out,
                    partial_out,
                    partial_lse,
                    lists,
                    lists + 16 + (tile // num_kv_heads) * 8,
                    page_tables,
                    scale,
                    soft_cap,
                    value_scale,
                    query_row_stride,
                    query_head_stride,
                    page_stride,
                    slot_stride,
                    kv_head_stride,
                    table_stride,
                    tile % num_kv_heads,
                    num_kv_heads,
                    window,
                    page_size,
                    head_dim,
                    padded_dim,
                    has_soft_cap,
                    precision,
                    kind_lines[kind],
                    kind_keys[kind],
                )
        kind_start = kind_end


@triton.jit
def _attend(
    query: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    out: tl.tensor,
    partial_out: tl.tensor,
    partial_lse: tl.tensor,
    lists: tl.tensor,
    item: tl.tensor,
    page_tables: tl.tensor,
    scale: tl.tensor,
    soft_cap: tl.tensor,
    value_scale: tl.tensor,
    query_row_stride: tl.tensor,
    query_head_stride: tl.tensor,
    page_stride: tl.tensor,
    slot_stride: tl.tensor,
    kv_head_stride: tl.tensor,
    table_stride: tl.tensor,
    kv_head: tl.tensor,
    num_kv_heads: tl.tensor,
    window: tl.tensor,
    page_size: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    has_soft_cap: tl.constexpr,
    precision: tl.constexpr,
    num_lines: tl.constexpr,
    block_keys: tl.constexpr,
) -> None:
    """One item for one KV head."""
    row_start, row_end = tl.load(item), tl.load(item + 1)
    kv_start, kv_end = tl.load(item + 3), tl.load(item + 4)
    is_causal, first_partial = tl.load(item + 5) != 0, tl.load(item + 6)
    table = page_tables + tl.load(item + 2).to(tl.int64) * table_stride

    positions = lists + tl.load(lists + 2)
    # Read here and once more at the end, not passed on: whatever follows from it would be computed
    # before the loops and held in registers, of which there are too few.
    ratio = tl.load(lists, volatile=True)
    line = tl.arange(0, num_lines)
    row, head = line // ratio, kv_head * ratio + line % ratio
    is_line = row < row_end - row_start
    dim = tl.arange(0, padded_dim)
    is_element = is_line[:, None] & (dim < head_dim)[None, :]
    # The tile's first element may lie far off; within the tile 32 bits are enough.
    query += row_start.to(tl.int64) * query_row_stride
    query_at = row * query_row_stride + head * query_head_stride
    queries = tl.load(query + (query_at[:, None] + dim[None, :]), mask=is_element, other=0.0)
    position = tl.load(positions + row_start + row, mask=is_line, other=0)
    lowest = tl.min(tl.where(is_line, position, FAR))
    highest = tl.max(position)

    # Keys from `start` on; those in [all_start, all_end) are seen by every line.
    start = tl.maximum(kv_start, lowest - window + 1)
    all_start = tl.maximum(start, highest - window + 1)
    all_end = tl.where(is_causal, tl.minimum(kv_end, lowest + 1), kv_end)
    num_blocks = tl.cdiv(tl.maximum(kv_end - start, 0), block_keys)
    inner_start = tl.minimum(tl.cdiv(all_start - start, block_keys), num_blocks)
    inner_end = tl.maximum(tl.maximum(all_end - start, 0) // block_keys, inner_start)

    # A line's last visible key; the first one is the window's.
    last = tl.where(is_causal, position, FAR)
    cache_at = kv_head.to(tl.int64) * kv_head_stride
    factor = scale if has_soft_cap else scale * LOG2_E
    outputs = tl.zeros([num_lines, padded_dim], tl.float32)
    maximum = tl.full([num_lines], NO_MAXIMUM, tl.float32)
    total = tl.zeros([num_lines], tl.float32)
    page = _pages_from(table, start + inner_start * block_keys, kv_end, page_size, block_keys)
    for block in range(inner_start, inner_end):
        # Known one block ahead: keys and values can be asked for without waiting for it.
        next_start = start + (block + 1) * block_keys
        next_page = _pages_from(table, next_start, kv_end, page_size, block_keys)
        outputs, maximum, total = _attend_block(
            outputs, maximum, total, queries, key_cache + cache_at, value_cache + cache_at, page,
            start + block * block_keys, kv_end, last, position - window, factor, soft_cap,
            page_stride, slot_stride, page_size, head_dim, padded_dim, has_soft_cap, precision,
            block_keys, False,
        )  # fmt: skip
        page = next_page
    for edge in tl.range(inner_start + num_blocks - inner_end, num_stages=1):
        block = tl.where(edge < inner_start, edge, edge + inner_end - inner_start)
        page = _pages_from(table, start + block * block_keys, kv_end, page_size, block_keys)
        outputs, maximum, total = _attend_block(
            outputs, maximum, total, queries, key_cache + cache_at, value_cache + cache_at, page,
            start + block * block_keys, kv_end, last, position - window, factor, soft_cap,
            page_stride, slot_stride, page_size, head_dim, padded_dim, has_soft_cap, precision,
            block_keys, True,
        )  # fmt: skip

    ratio = tl.load(lists, volatile=True)
    num_heads = num_kv_heads * ratio
    row, head = line // ratio, kv_head * ratio + line % ratio
    is_line = row < row_end - row_start
    is_element = is_line[:, None] & (dim < head_dim)[None, :]
    sees_any = total > 0
    total = tl.where(sees_any, total, 1.0)
    outputs *= (value_scale / total)[:, None]
    at = row * num_heads + head
    element_at = at[:, None] * head_dim + dim[None, :]
    if first_partial < 0:
        out += row_start.to(tl.int64) * num_heads * head_dim
        tl.store(out + element_at, outputs.to(out.dtype.element_ty), mask=is_element)
    else:
        partial_out += first_partial.to(tl.int64) * num_heads * head_dim
        tl.store(partial_out + element_at, outputs, mask=is_element)
        lse = tl.where(sees_any, maximum + tl.log2(total), float("-inf"))
        tl.store(partial_lse + first_partial.to(tl.int64) * num_heads + at, lse, mask=is_line)


@triton.jit
def _pages_from(
    table: tl.tensor,  # [max_pages]
    start: tl.tensor,
    kv_end: tl.tensor,
    page_size: tl.constexpr,
    block_keys: tl.constexpr,
) -> tl.tensor:
    """The page of each key from position `start` on, [block_keys]; 0 from `kv_end` on."""
    key = start + tl.arange(0, block_keys)
    return tl.load(table + key // page_size, mask=key < kv_end, other=0)


@triton.jit
def _attend_block(
    outputs: tl.tensor,  # [num_lines, padded_dim] not yet divided by `total`
    maximum: tl.tensor,  # [num_lines] of the scores so far
    total: tl.tensor,  # [num_lines] of the weights so far
    queries: tl.tensor,  # [num_lines, padded_dim]
    keys: tl.tensor,  # the head's first key in the cache
    values: tl.tensor,
    page: tl.tensor,  # [block_keys] of each key
    start: tl.tensor,
    kv_end: tl.tensor,
    last: tl.tensor,  # [num_lines] position of a line's last visible key
    before: tl.tensor,  # [num_lines] position before a line's window
    factor: tl.tensor,
    soft_cap: tl.tensor,
    page_stride: tl.tensor,
    slot_stride: tl.tensor,
    page_size: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    has_soft_cap: tl.constexpr,
    precision: tl.constexpr,
    block_keys: tl.constexpr,
    is_edge: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The lines over the keys from position `start` on."""
    key = start + tl.arange(0, block_keys)
    dim = tl.arange(0, padded_dim)
    at = page.to(tl.int64) * page_stride + (key % page_size) * slot_stride
    at = at[:, None] + dim[None, :]
    # What lies behind the end of a span may be anything, and 0 * NaN is NaN.
    is_present = (dim < head_dim)[None, :]
    if is_edge:
        is_present &= (key < kv_end)[:, None]
    if is_edge or head_dim < padded_dim:
        key_block = tl.load(keys + at, mask=is_present, other=0.0)
    else:
        key_block = tl.load(keys + at)
    key_block = _widen(key_block, queries.dtype)
    scores = tl.dot(queries, tl.trans(key_block), input_precision=precision)
    if has_soft_cap:
        # tanh(x) = 1 - 2 / (1 + exp(2 x)), which is 1 long before 2^64.
        power = tl.exp2(tl.minimum(scores * (factor * 2 * LOG2_E / soft_cap), 64.0))
        scores = soft_cap * LOG2_E * (1 - 2 / (1 + power))
        factor = 1.0
    if is_edge:
        is_visible = (key[None, :] <= last[:, None]) & (key[None, :] > before[:, None])
        is_visible &= (key < kv_end)[None, :]
        scores = tl.where(is_visible, scores, float("-inf"))
    new_maximum = tl.maximum(maximum, tl.max(scores, 1) * factor)
    weights = tl.exp2(scores * factor - new_maximum[:, None])
    shrink = tl.exp2(maximum - new_maximum)
    total = total * shrink + tl.sum(weights, 1)
    if is_edge or head_dim < padded_dim:
        value_block = tl.load(values + at, mask=is_present, other=0.0)
    else:
        value_block = tl.load(values + at)
    value_block = _widen(value_block, queries.dtype)
    outputs = tl.dot(
        weights.to(queries.dtype), value_block, outputs * shrink[:, None], input_precision=precision
    )
    return outputs, new_maximum, total


@triton.jit
def _widen(block: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Cached elements in the query's dtype; e4m3 bits give 1/256 of the value (and no NaN)."""
    if block.dtype == tl.uint8:
        bits = block.to(tl.uint16)
        # Sign, exponent and mantissa at their places in a float16, whose exponents begin 8 lower.
        bits = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        block = bits.to(tl.float16, bitcast=True)
    return block.to(dtype)
