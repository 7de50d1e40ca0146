"""Root-mean-square normalisation in Triton, with or without adding to the residual stream first."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trunkline.kernels.gpu.variant import Variant

# A row stays in the registers of one program.
MAX_SIZE = 16384
# Of a warp's share of the row: two 16-byte accesses of each of 32 lanes, or one of each of 64.
WARP_BYTES = 1024
MAX_WARPS = 16


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`; x is contiguous, its last dimension at most MAX_SIZE."""
    normed = torch.empty_like(x)
    _launch(x, None, weight, eps, normed, None)
    return normed


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`; x and residual are contiguous, of at most MAX_SIZE columns."""
    normed, total = torch.empty_like(x), torch.empty_like(x)
    _launch(x, residual, weight, eps, normed, total)
    return normed, total


def _launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    normed: Tensor,
    total: Tensor | None,
) -> None:
    size = x.shape[-1]
    if size > MAX_SIZE:
        raise ValueError(f"rows of {size} elements; the kernel takes up to {MAX_SIZE}")
    num_rows = x.numel() // size
    if num_rows == 0:
        return
    add_rms_norm_kernel[(num_rows,)](
        x,
        residual,
        weight,
        normed,
        total,
        eps,
        **_constexprs(size),
        num_warps=_num_warps(size, x.element_size()),
    )


def _constexprs(size: int) -> dict[str, int]:
    return {"size": size, "padded_size": triton.next_power_of_2(size)}


def _num_warps(size: int, element_bytes: int) -> int:
    padded_bytes: int = triton.next_power_of_2(size) * element_bytes
    return min(max(padded_bytes // WARP_BYTES, 1), MAX_WARPS)


@triton.jit
def add_rms_norm_kernel(
    x: tl.tensor,  # [num_rows, size], like all but the weight
    residual: tl.tensor,  # None: the row is x itself
    weight: tl.tensor,  # [size]
    normed: tl.tensor,
    total: tl.tensor,  # None where the residual is
    eps: tl.tensor,
    size: tl.constexpr,
    padded_size: tl.constexpr,
) -> None:
    """One row."""
    column = tl.arange(0, padded_size)
    is_column = column < size
    at = tl.program_id(0).to(tl.int64) * size + column
    row = tl.load(x + at, mask=is_column, other=0.0)
    if residual is not None:
        other = tl.load(residual + at, mask=is_column, other=0.0)
        row = (row.to(tl.float32) + other.to(tl.float32)).to(row.dtype)
        tl.store(total + at, row, mask=is_column)
    wide = row.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, axis=0) / size + eps)
    scaled = (wide * factor).to(row.dtype).to(tl.float32)
    factors = tl.load(weight + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(normed + at, (scaled * factors).to(row.dtype), mask=is_column)


def variants() -> list[Variant]:
    """The largest size, a usual one, and one whose rows are not aligned."""
    tensors = ("x", "residual", "weight", "normed", "total")
    found = []
    for size in (1001, 4096, MAX_SIZE):
        for dtype, element_bytes in (("bf16", 2), ("fp32", 4)):
            for has_residual in (True, False):
                absent = [] if has_residual else ["residual", "total"]
                found.append(
                    Variant(
                        name=f"{'add_' if has_residual else ''}rms_norm_{dtype}_{size}",
                        kernel=add_rms_norm_kernel,
                        signature={
                            **{name: f"*{dtype}" for name in tensors if name not in absent},
                            "eps": "fp32",
                        },
                        constexprs={**dict.fromkeys(absent), **_constexprs(size)},
                        num_warps=_num_warps(size, element_bytes),
                    )
                )
    return found
