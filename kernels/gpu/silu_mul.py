"""The gate of the feed-forward layer in Triton."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from trunkline.kernels.gpu.variant import Variant

# Columns of a program: two 16-byte accesses of each of 32 lanes, or one of each of 64.
BLOCK_SIZE = 1024
NUM_WARPS = 2


def silu_mul(gate_up: Tensor) -> Tensor:
    """See `reference.silu_mul`; gate_up is contiguous."""
    num_rows, double_size = gate_up.shape
    size = double_size // 2
    out = gate_up.new_empty(num_rows, size)
    if out.numel():
        grid = (num_rows, triton.cdiv(size, BLOCK_SIZE))
        silu_mul_kernel[grid](gate_up, out, size, block_size=BLOCK_SIZE, num_warps=NUM_WARPS)
    return out


@triton.jit
def silu_mul_kernel(
    gate_up: tl.tensor,  # [num_rows, 2 * size]
    out: tl.tensor,  # [num_rows, size]
    size: tl.tensor,
    block_size: tl.constexpr,
) -> None:
    """A block of columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block_size + tl.arange(0, block_size)
    is_column = column < size
    gate_at = gate_up + row * 2 * size + column
    gate = tl.load(gate_at, mask=is_column, other=0.0)
    up = tl.load(gate_at + size, mask=is_column, other=0.0)
    wide = gate.to(tl.float32)
    shrunk = tl.exp(-tl.abs(wide))  # of either sign at most 1
    silu = (wide * tl.where(wide >= 0, 1.0, shrunk) / (1.0 + shrunk)).to(gate.dtype)
    product = silu.to(tl.float32) * up.to(tl.float32)
    tl.store(out + row * size + column, product.to(gate.dtype), mask=is_column)


def variants() -> list[Variant]:
    """With sizes that keep the rows aligned, and with others."""
    return [
        Variant(
            name=f"silu_mul_{dtype}{suffix}",
            kernel=silu_mul_kernel,
            signature={"gate_up": f"*{dtype}", "out": f"*{dtype}", "size": size_type},
            constexprs={"block_size": BLOCK_SIZE},
            num_warps=NUM_WARPS,
        )
        for dtype in ("bf16", "fp32")
        for size_type, suffix in (("i32:16", ""), ("i32", "_unaligned"))
    ]
