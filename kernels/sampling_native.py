"""Choosing tokens by the compiled kernels in `cpu/sampling.cpp`."""

from __future__ import annotations

import torch
from torch import Tensor

from trunkline.kernels.native import NativeLibrary


def largest(library: NativeLibrary, logits: Tensor) -> Tensor:
    """[num_rows] int64 index of each row's largest logit, the first among equals.

    Args:
        library: the compiled kernels.
        logits: [num_rows, vocab_size], contiguous; float32 or bfloat16.
    """
    index = torch.empty(len(logits), dtype=torch.int64)
    library.call("largest", logits.dtype, logits, *logits.shape, index, torch.get_num_threads())
    return index


def apply_token_masks(
    library: NativeLibrary, logits: Tensor, masks: Tensor, mask_of_row: Tensor
) -> Tensor:
    """See `reference.apply_token_masks`.

    Args:
        library: the compiled kernels.
        logits: [num_rows, vocab_size], contiguous; float32 or bfloat16.
        masks: [num_masks, num_words] int32, contiguous.
        mask_of_row: [num_rows] int64, contiguous.
    """
    masked = torch.empty_like(logits)
    library.call(
        "apply_token_masks",
        logits.dtype,
        logits,
        *logits.shape,
        masks,
        masks.shape[1],
        mask_of_row,
        masked,
        torch.get_num_threads(),
    )
    return masked
