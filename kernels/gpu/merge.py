"""The second launch of the attention: merges the partial results of each row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from trunkline.kernels.gpu.device_work import DeviceWork
from trunkline.kernels.gpu.variant import Variant

# Heads that a program merges at once.
BLOCK_HEADS = 8
NUM_WARPS = 4
PROGRAMS_PER_PROCESSOR = 4


def merge_partials(out: Tensor, work: DeviceWork) -> None:
    """Write the rows of `out` [num_rows, num_heads, head_dim] that have partial results."""
    _, num_heads, head_dim = out.shape
    merge_kernel[(work.num_processors * PROGRAMS_PER_PROCESSOR,)](
        out,
        work.partial_out,
        work.partial_lse,
        work.lists,
        num_heads,
        **_constexprs(head_dim),
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )


@triton.jit
def merge_kernel(
    out: tl.tensor,  # [num_rows, num_heads, head_dim], contiguous
    partial_out: tl.tensor,  # [num_partials, num_heads, head_dim], contiguous
    partial_lse: tl.tensor,  # [num_partials, num_heads], base 2, contiguous
    lists: tl.tensor,  # see DeviceWork
    num_heads: tl.tensor,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    block_heads: tl.constexpr,
) -> None:
    """Rows times blocks of heads: the mean of the partial results, weighed by 2^lse."""
    num_merged = tl.load(lists + 1)
    merged_rows = lists + tl.load(lists + 3)
    merged_start = lists + tl.load(lists + 4)
    merged_partials = lists + tl.load(lists + 5)
    num_blocks = tl.cdiv(num_heads, block_heads)
    dim = tl.arange(0, padded_dim)
    for i in range(tl.program_id(0), num_merged * num_blocks, tl.num_programs(0)):
        merged = i // num_blocks
        head = i % num_blocks * block_heads + tl.arange(0, block_heads)
        is_head = head < num_heads
        is_element = is_head[:, None] & (dim < head_dim)[None, :]
        within = head[:, None] * head_dim + dim[None, :]
        outputs = tl.zeros([block_heads, padded_dim], tl.float32)
        # Finite, so that differences are numbers when a row's first partial results saw no key.
        highest = tl.full([block_heads], -1e30, tl.float32)
        total = tl.zeros([block_heads], tl.float32)
        for j in range(tl.load(merged_start + merged), tl.load(merged_start + merged + 1)):
            partial = tl.load(merged_partials + j).to(tl.int64)
            lse = tl.load(partial_lse + partial * num_heads + head, mask=is_head, other=0.0)
            part = tl.load(
                partial_out + partial * num_heads * head_dim + within, mask=is_element, other=0.0
            )
            new_highest = tl.maximum(highest, lse)
            shrink, weight = tl.exp2(highest - new_highest), tl.exp2(lse - new_highest)
            outputs = outputs * shrink[:, None] + part * weight[:, None]
            total = total * shrink + weight
            highest = new_highest
        outputs /= tl.where(total > 0, total, 1.0)[:, None]
        row = tl.load(merged_rows + merged).to(tl.int64)
        out_at = out + row * num_heads * head_dim + within
        tl.store(out_at, outputs.to(out.dtype.element_ty), mask=is_element)


def variants() -> list[Variant]:
    """Of head sizes that fill their block, and one that does not."""
    return [
        Variant(
            name=f"merge_{dtype}_{head_dim}",
            kernel=merge_kernel,
            signature={
                "out": f"*{dtype}",
                "partial_out": "*fp32",
                "partial_lse": "*fp32",
                "lists": "*i32",
                "num_heads": "i32",
            },
            constexprs=_constexprs(head_dim),
            num_warps=NUM_WARPS,
        )
        for dtype in ("bf16", "fp32")
        for head_dim in (64, 80, 128, 256)
    ]


def _constexprs(head_dim: int) -> dict[str, object]:
    return {
        "head_dim": head_dim,
        "padded_dim": triton.next_power_of_2(head_dim),
        "block_heads": BLOCK_HEADS,
    }
