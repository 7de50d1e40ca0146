"""Sampling in Triton: one program for each row of logits, nothing sorted, nothing on the host.

The specification, and what a token's mass is, are in `reference.sample_rows`. A program goes over
its row several times, block by block; the row is in the L2 cache after the first.

1. The largest logit. A greedy row ends here.
2. Top-k and top-p both keep the logits from a threshold on: the largest x for which the tokens with
   a logit >= x weigh at least some limit. For top-k each token weighs 1 and the limit is k; for
   top-p it weighs its mass, and the limit is that share of the mass that top-k left. The threshold
   is found by bisection, see `_find_threshold`.
3. The mass of the tokens is summed in the order of the vocabulary up to the uniform number's share.

Logits are compared by their image: integers in the order of the numbers. Masses are integers too,
so that their sums do not depend on the order of summation, nor on the size of a block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trunkline.kernels import reference
from trunkline.kernels.gpu.variant import Variant

BLOCK_SIZE = 4096
NUM_WARPS = 8

MASS: tl.constexpr = tl.constexpr(float(reference.MASS_OF_LARGEST))
LEAST_TEMPERATURE: tl.constexpr = tl.constexpr(reference.LEAST_TEMPERATURE)
LEAST_IMAGE: tl.constexpr = tl.constexpr(-(2**31))
GREATEST_IMAGE: tl.constexpr = tl.constexpr(2**31 - 1)
# Of minus infinity.
IMAGE_OF_NOTHING: tl.constexpr = tl.constexpr(-(2**31) + 2**23 - 1)


def sample_rows(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor
) -> Tensor:
    """See `reference.sample_rows`; all but the logits are contiguous."""
    num_rows, vocab_size = logits.shape
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows:
        sample_kernel[(num_rows,)](
            logits,
            temperature,
            top_k,
            top_p,
            uniform,
            tokens,
            vocab_size,
            logits.stride(0),
            block_size=min(BLOCK_SIZE, triton.next_power_of_2(vocab_size)),
            num_warps=NUM_WARPS,
        )
    return tokens


@triton.jit
def sample_kernel(
    logits: tl.tensor,  # [num_rows, vocab_size]
    temperature: tl.tensor,  # [num_rows] float32
    top_k: tl.tensor,  # [num_rows] int32
    top_p: tl.tensor,  # [num_rows] float32
    uniform: tl.tensor,  # [num_rows] float32
    tokens: tl.tensor,  # [num_rows] int64
    vocab_size: tl.tensor,
    row_stride: tl.tensor,
    block_size: tl.constexpr,
) -> None:
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    largest, best = _find_largest(logits, vocab_size, block_size)
    row_temperature = tl.load(temperature + row)
    if row_temperature == 0.0:
        tl.store(tokens + row, best.to(tl.int64))
    else:
        inverse = tl.div_rn(1.0, tl.maximum(row_temperature, LEAST_TEMPERATURE))
        maximum = _number(largest)
        end = largest.to(tl.int64) + 1
        threshold = tl.full([], IMAGE_OF_NOTHING, tl.int64)

        count = tl.load(top_k + row).to(tl.int64)
        if (count > 0) & (count < vocab_size):
            threshold, _ = _find_threshold(
                logits,
                vocab_size,
                threshold,
                end,
                tl.cast(vocab_size, tl.int64),
                count,
                maximum,
                inverse,
                False,
                block_size,
            )
        total = _mass_from(logits, vocab_size, threshold, maximum, inverse, block_size)
        share = tl.load(top_p + row)
        if share < 1.0:
            limit = _ceil(share.to(tl.float64) * total.to(tl.float64))
            threshold, total = _find_threshold(
                logits,
                vocab_size,
                threshold,
                end,
                total,
                tl.maximum(limit, 1),
                maximum,
                inverse,
                True,
                block_size,
            )
        target = (tl.load(uniform + row).to(tl.float64) * total.to(tl.float64)).to(tl.int64)
        token = _invert(logits, vocab_size, threshold, maximum, inverse, target, block_size)
        tl.store(tokens + row, token.to(tl.int64))


@triton.jit
def _find_largest(logits: tl.tensor, vocab_size: tl.tensor, block_size: tl.constexpr) -> tl.tensor:
    """(image of the largest logit, its token; the lowest one among equals)."""
    lane = tl.arange(0, block_size)
    largest = tl.full([block_size], LEAST_IMAGE, tl.int32)
    best = tl.zeros([block_size], tl.int32)
    for start in range(0, vocab_size, block_size):
        image = _image(_load(logits, start + lane, vocab_size))
        best = tl.where(image > largest, start + lane, best)
        largest = tl.maximum(image, largest)
    row_largest = tl.max(largest, axis=0)
    return row_largest, tl.min(tl.where(largest == row_largest, best, vocab_size), axis=0)


@triton.jit
def _find_threshold(
    logits: tl.tensor,
    vocab_size: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    weight: tl.tensor,
    limit: tl.tensor,
    maximum: tl.tensor,
    inverse: tl.tensor,
    by_mass: tl.constexpr,
    block_size: tl.constexpr,
) -> tl.tensor:
    """The largest image from which on the tokens weigh at least `limit`, and their weight.

    Invariant: the tokens from `low` on weigh `weight` >= limit, those from `high` on weigh less.
    Both ends move to the next image that occurs in the row, so that bisection ends as soon as one
    distinct logit is left. It halves the numbers and the images by turns: the former is fast where
    logits are spread evenly, the latter bounds the passes wherever they lie.

    Args:
        low: int64 image, with weight >= limit >= 1.
        high: int64 image above every token's.
        weight: int64, of the tokens from `low` on.
        limit: int64.
        by_mass: a token weighs its mass; else 1.
    """
    lane = tl.arange(0, block_size)
    halves_numbers = True
    while high - low > 1:
        middle = low + (high - low) // 2
        if halves_numbers:
            number = 0.5 * _number(low.to(tl.int32)) + 0.5 * _number((high - 1).to(tl.int32))
            middle = tl.minimum(tl.maximum(_image(number).to(tl.int64), low + 1), high - 1)
        halves_numbers = not halves_numbers

        weights = tl.zeros([block_size], tl.int64)
        above = tl.full([block_size], GREATEST_IMAGE, tl.int32)
        below = tl.full([block_size], LEAST_IMAGE, tl.int32)
        split = middle.to(tl.int32)
        for start in range(0, vocab_size, block_size):
            logit = _load(logits, start + lane, vocab_size)
            image = _image(logit)
            each = _mass(logit, maximum, inverse) if by_mass else 1
            is_above = image >= split
            weights += tl.where(is_above, each, 0)
            above = tl.minimum(above, tl.where(is_above, image, GREATEST_IMAGE))
            below = tl.maximum(below, tl.where(is_above, LEAST_IMAGE, image))
        weight_above = tl.sum(weights, axis=0)
        if weight_above >= limit:
            low = tl.min(above, axis=0).to(tl.int64)
            weight = weight_above
        else:
            high = tl.maximum(tl.max(below, axis=0).to(tl.int64), low) + 1
    return low, weight


@triton.jit
def _mass_from(
    logits: tl.tensor,
    vocab_size: tl.tensor,
    threshold: tl.tensor,
    maximum: tl.tensor,
    inverse: tl.tensor,
    block_size: tl.constexpr,
) -> tl.tensor:
    """Mass of the tokens whose image is at least `threshold`."""
    lane = tl.arange(0, block_size)
    mass = tl.zeros([block_size], tl.int64)
    for start in range(0, vocab_size, block_size):
        logit = _load(logits, start + lane, vocab_size)
        mass += tl.where(_image(logit) >= threshold, _mass(logit, maximum, inverse), 0)
    return tl.sum(mass, axis=0)


@triton.jit
def _invert(
    logits: tl.tensor,
    vocab_size: tl.tensor,
    threshold: tl.tensor,
    maximum: tl.tensor,
    inverse: tl.tensor,
    target: tl.tensor,
    block_size: tl.constexpr,
) -> tl.tensor:
    """The first token at which the running sum of the masses passes `target`."""
    lane = tl.arange(0, block_size)
    before = target * 0
    found_start, found_before = 0, before
    for start in range(0, vocab_size, block_size):
        logit = _load(logits, start + lane, vocab_size)
        mass = tl.where(_image(logit) >= threshold, _mass(logit, maximum, inverse), 0)
        # Of the blocks that begin at or below the target, the last that adds anything is its own.
        block_mass = tl.sum(mass.to(tl.int64), axis=0)
        if (before <= target) & (block_mass > 0):
            found_start, found_before = start, before
        before += block_mass
    logit = _load(logits, found_start + lane, vocab_size)
    mass = tl.where(_image(logit) >= threshold, _mass(logit, maximum, inverse), 0)
    passed = found_before + tl.cumsum(mass.to(tl.int64), axis=0) > target
    return tl.min(tl.where(passed, found_start + lane, vocab_size - 1), axis=0)


@triton.jit
def _load(logits: tl.tensor, token: tl.tensor, vocab_size: tl.tensor) -> tl.tensor:
    """Float32; -inf behind the vocabulary."""
    return tl.load(logits + token, mask=token < vocab_size, other=-float("inf")).to(tl.float32)


@triton.jit
def _mass(logit: tl.tensor, maximum: tl.tensor, inverse: tl.tensor) -> tl.tensor:
    """[...] int32."""
    return (tl.exp((logit - maximum) * inverse) * MASS).to(tl.int32)


@triton.jit
def _image(number: tl.tensor) -> tl.tensor:
    """Int32 in the order of the numbers; one image for both zeros."""
    bits = tl.where(number == 0.0, 0.0, number).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _number(image: tl.tensor) -> tl.tensor:
    """The number whose image it is."""
    return (image ^ ((image >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _ceil(x: tl.tensor) -> tl.tensor:
    """Int64; x is not negative."""
    down = x.to(tl.int64)
    return down + (down.to(tl.float64) < x).to(tl.int64)


def variants() -> list[Variant]:
    """Of the dtypes in which logits come; rows are aligned or not."""
    return [
        Variant(
            name=f"sample_{dtype}{suffix}",
            kernel=sample_kernel,
            signature={
                "logits": f"*{dtype}",
                "temperature": "*fp32",
                "top_k": "*i32",
                "top_p": "*fp32",
                "uniform": "*fp32",
                "tokens": "*i64",
                "vocab_size": size_type,
                "row_stride": size_type,
            },
            constexprs={"block_size": BLOCK_SIZE},
            num_warps=NUM_WARPS,
        )
        for dtype in ("bf16", "fp32")
        for size_type, suffix in (("i32:16", ""), ("i32", "_unaligned"))
    ]
