"""Masks over the vocabulary in Triton: forbidden tokens' logits become -inf."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trunkline.kernels.gpu.variant import Variant

BLOCK_SIZE = 1024
NUM_WARPS = 4


def apply_token_masks(logits: Tensor, masks: Tensor, mask_of_row: Tensor) -> Tensor:
    """See `reference.apply_token_masks`; all are contiguous."""
    num_rows, vocab_size = logits.shape
    masked = torch.empty_like(logits)
    if num_rows:
        grid = (num_rows, triton.cdiv(vocab_size, BLOCK_SIZE))
        token_masks_kernel[grid](
            logits,
            masks,
            mask_of_row,
            masked,
            vocab_size,
            masks.shape[1],
            block_size=BLOCK_SIZE,
            num_warps=NUM_WARPS,
        )
    return masked


# The masks of a part of a step begin at any word.
@triton.jit(do_not_specialize=["num_words"], do_not_specialize_on_alignment=["masks"])
def token_masks_kernel(
    logits: tl.tensor,  # [num_rows, vocab_size]
    masks: tl.tensor,  # [num_masks, num_words] int32
    mask_of_row: tl.tensor,  # [num_rows] int64
    masked: tl.tensor,  # [num_rows, vocab_size]
    vocab_size: tl.tensor,
    num_words: tl.tensor,
    block_size: tl.constexpr,
) -> None:
    """A block of tokens of one row."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * block_size + tl.arange(0, block_size)
    is_token = token < vocab_size
    mask = tl.load(mask_of_row + row)
    is_allowed = is_token
    if mask >= 0:
        word = tl.load(masks + mask * num_words + token // 32, mask=is_token, other=0)
        is_allowed = ((word >> (token % 32)) & 1) != 0
    at = row * vocab_size + token
    logit = tl.load(logits + at, mask=is_allowed, other=-float("inf"))
    tl.store(masked + at, logit, mask=is_token)


def variants() -> list[Variant]:
    """Of the dtypes in which logits come; rows are aligned or not."""
    return [
        Variant(
            name=f"token_masks_{dtype}{suffix}",
            kernel=token_masks_kernel,
            signature={
                "logits": f"*{dtype}",
                "masks": "*i32",
                "mask_of_row": "*i64",
                "masked": f"*{dtype}",
                "vocab_size": size_type,
                "num_words": "i32",
            },
            constexprs={"block_size": BLOCK_SIZE},
            num_warps=NUM_WARPS,
        )
        for dtype in ("bf16", "fp32")
        for size_type, suffix in (("i32:16", ""), ("i32", "_unaligned"))
    ]
