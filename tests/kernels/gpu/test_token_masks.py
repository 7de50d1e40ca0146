"""Masks over the vocabulary in torch, C++ and Triton against the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trunkline.kernels import reference, sampling, sampling_native
from trunkline.kernels.gpu import token_masks
from trunkline.kernels.native import NativeLibrary

Mask = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture
def in_cpp(library: NativeLibrary) -> Mask:
    def mask(logits: Tensor, masks: Tensor, mask_of_row: Tensor) -> Tensor:
        given = logits.cpu(), masks.cpu(), mask_of_row.cpu()
        return sampling_native.apply_token_masks(library, *given).to(logits.device)

    return mask


TRITON = pytest.param("triton", marks=pytest.mark.interpreter)


@pytest.fixture(params=["torch", "cpp", TRITON])
def variant(request: pytest.FixtureRequest) -> Mask:
    if request.param == "cpp":
        mask: Mask = request.getfixturevalue("in_cpp")
        return mask
    return {"torch": sampling, "triton": token_masks}[request.param].apply_token_masks


def random_masks(num_masks: int, num_words: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(num_words)
    masks = torch.randint(-(2**31), 2**31, (num_masks, num_words), generator=generator)
    masks[0, ::2], masks[0, 1::2] = 0, -1
    return masks.to(torch.int32).to(device)


def check(variant: Mask, dtype: torch.dtype, vocab_size: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(7, vocab_size, generator=generator).to(dtype).to(device)
    logits[2, 0] = -torch.inf
    before = logits.clone()
    # One word more than the vocabulary takes, as where a tokenizer has more tokens than logits.
    masks = random_masks(4, -(-vocab_size // 32) + 1, device)
    mask_of_row = torch.tensor([3, -1, 0, 1, -1, 2, 0], device=device)
    found = variant(logits, masks, mask_of_row)
    assert found.dtype == dtype
    assert torch.equal(found, reference.apply_token_masks(logits, masks, mask_of_row))
    assert torch.equal(logits, before)


VOCAB_SIZES = [1, 15, 31, 32, 33, 64, 1023, 1024, 2500]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_the_references_logits(
    variant: Mask, dtype: torch.dtype, vocab_size: int, device: torch.device
) -> None:
    check(variant, dtype, vocab_size, device)


@pytest.mark.parametrize("variant", ["torch", TRITON], indirect=True)
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_the_references_logits_in_float16(
    variant: Mask, vocab_size: int, device: torch.device
) -> None:
    """Which the C++ kernel does not take."""
    check(variant, torch.float16, vocab_size, device)


def test_what_is_forbidden_is_not_read(variant: Mask, device: torch.device) -> None:
    """A logit that is not a number does not matter where its token is forbidden."""
    logits = torch.full((2, 70), torch.nan, device=device)
    logits[:, 69] = 1.0
    masks = torch.tensor([[0, 0, 1 << 5]], dtype=torch.int32, device=device)
    mask_of_row = torch.zeros(2, dtype=torch.int64, device=device)
    found = variant(logits, masks, mask_of_row)
    assert found[:, 69].tolist() == [1.0, 1.0]
    assert (found[:, :69] == -torch.inf).all()


def test_no_rows(variant: Mask, device: torch.device) -> None:
    masks = torch.zeros(1, 4, dtype=torch.int32, device=device)
    empty = torch.empty(0, 100, device=device)
    rows = torch.empty(0, dtype=torch.int64, device=device)
    assert variant(empty, masks, rows).shape == (0, 100)


def test_as_many_threads_as_there_are(in_cpp: Mask) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        logits = torch.randn(50, 999)
        masks = random_masks(5, 32, torch.device("cpu"))
        rows = torch.arange(50) % 6 - 1
        assert torch.equal(
            in_cpp(logits, masks, rows), reference.apply_token_masks(logits, masks, rows)
        )
    finally:
        torch.set_num_threads(before)
