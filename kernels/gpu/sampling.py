"""Sampling in Triton: one program for each row of logits, nothing sorted, nothing on the host.

The specification, and what a token's mass is, are in `reference.sample_rows`. A program goes over
its row several times, block by block; the row is in the L2 cache after the first.

1. The largest logit. A greedy row ends here.
2. Top-k and top-p both keep the logits from a threshold on: the largest x for which the tokens with
   a logit >= x weigh at least some limit. For top-k each token weighs 1 and the limit is k; for
   top-p it weighs its mass, and the limit is that share of the mass that top-k left. One pass
   weighs the tokens above four logits at once, which leaves few tokens among which the threshold
   is; these are copied by another pass, and bisected there. See `threshold`.
3. The mass of the tokens is summed in the order of the vocabulary up to the uniform number's share.

A logit is read once in a greedy row, three times in one without restrictions, four times with top-k
or top-p, five with both; three times where the largest logit is the threshold. Each time that more
than `CAPACITY` tokens are left, which is where a row is flat, another pass is made: over random
vocabularies of 128,256 a logit was read 3 to 8 times, and 4 to 26 times by bisection over the whole
row. Step 3 reads one block twice.

Logits are compared by their image, and masses are integers; see `logit_images`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trunkline.kernels import reference
from trunkline.kernels.gpu.logit_images import (
    IMAGE_OF_NOTHING,
    LEAST_IMAGE,
    image_between,
    image_of,
    load_logits,
    mass_of,
    number_of,
)
from trunkline.kernels.gpu.threshold import closer_ends, find_threshold, weigh, weigh_from
from trunkline.kernels.gpu.variant import Variant

BLOCK_SIZE = 1024
NUM_WARPS = 4
# Logits that a program copies at most, to find a threshold among them.
CAPACITY = 4096

LEAST_TEMPERATURE: tl.constexpr = tl.constexpr(reference.LEAST_TEMPERATURE)
# Below the largest logit, in units of the temperature: where most thresholds are, and from where on
# tokens have no mass.
NEAR: tl.constexpr = tl.constexpr(3.0)
FAR: tl.constexpr = tl.constexpr(8.0)
WEIGHTLESS: tl.constexpr = tl.constexpr(21.0)


def sample_rows(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor
) -> Tensor:
    """See `reference.sample_rows`; all but the logits are contiguous."""
    num_rows, vocab_size = logits.shape
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows:
        capacity = min(CAPACITY, triton.next_power_of_2(vocab_size))
        sample_kernel[(num_rows,)](
            logits,
            temperature,
            top_k,
            top_p,
            uniform,
            tokens,
            torch.empty(num_rows, capacity, dtype=torch.float32, device=logits.device),
            vocab_size,
            logits.stride(0),
            capacity=capacity,
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
    candidates: tl.tensor,  # [num_rows, capacity] float32, memory to work in
    vocab_size: tl.tensor,
    row_stride: tl.tensor,
    capacity: tl.constexpr,
    block_size: tl.constexpr,
) -> None:
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    largest, best = _find_largest(logits, vocab_size, 2 * block_size)
    row_temperature = tl.load(temperature + row)
    if row_temperature == 0.0:
        tl.store(tokens + row, best.to(tl.int64))
    else:
        candidates += row * capacity
        inverse = tl.div_rn(1.0, tl.maximum(row_temperature, LEAST_TEMPERATURE))
        maximum = number_of(largest)
        end = largest.to(tl.int64) + 1
        count = tl.load(top_k + row).to(tl.int64)
        is_counted = (count > 0) & (count < vocab_size)
        share = tl.load(top_p + row)
        threshold = tl.full([], IMAGE_OF_NOTHING, tl.int64)
        if is_counted | (share < 1.0):
            spread = tl.div_rn(1.0, inverse)
            a = image_between(maximum - WEIGHTLESS * spread, threshold, end)
            b = image_between(maximum - FAR * spread, threshold, end)
            c = image_between(maximum - NEAR * spread, threshold, end)
            d = end - 1
            at_a, at_b, at_c, at_d, _ = weigh(
                logits, vocab_size, threshold, a, b, c, d, maximum, inverse, block_size
            )
            nothing = count * 0
            low = threshold, tl.cast(vocab_size, tl.int64), at_a[2]
            high = end, nothing, nothing
            # Without top-k the first search is top-p's.
            limit = tl.where(is_counted, count, _share_of(at_a[2], share))
            by_mass = is_counted == 0
            low, high = closer_ends(low, high, at_a, limit, by_mass)
            low, high = closer_ends(low, high, at_b, limit, by_mass)
            low, high = closer_ends(low, high, at_c, limit, by_mass)
            low, high = closer_ends(low, high, at_d, limit, by_mass)
            low = find_threshold(
                logits,
                candidates,
                vocab_size,
                low,
                high,
                limit,
                maximum,
                inverse,
                by_mass,
                capacity,
                block_size,
            )
            if is_counted & (share < 1.0):
                low = find_threshold(
                    logits,
                    candidates,
                    vocab_size,
                    low,
                    (end, nothing, nothing),
                    _share_of(low[2], share),
                    maximum,
                    inverse,
                    is_counted,
                    capacity,
                    block_size,
                )
            threshold, total = low[0], low[2]
        else:
            _, total = weigh_from(logits, vocab_size, threshold, maximum, inverse, block_size)
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
        image = image_of(load_logits(logits, start + lane, vocab_size))
        best = tl.where(image > largest, start + lane, best)
        largest = tl.maximum(image, largest)
    row_largest = tl.max(largest, axis=0)
    return row_largest, tl.min(tl.where(largest == row_largest, best, vocab_size), axis=0)


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
        logit = load_logits(logits, start + lane, vocab_size)
        mass = tl.where(image_of(logit) >= threshold, mass_of(logit, maximum, inverse), 0)
        # Of the blocks that begin at or below the target, the last that adds anything is its own.
        block_mass = tl.sum(mass.to(tl.int64), axis=0)
        if (before <= target) & (block_mass > 0):
            found_start, found_before = start, before
        before += block_mass
    logit = load_logits(logits, found_start + lane, vocab_size)
    mass = tl.where(image_of(logit) >= threshold, mass_of(logit, maximum, inverse), 0)
    passed = found_before + tl.cumsum(mass.to(tl.int64), axis=0) > target
    return tl.min(tl.where(passed, found_start + lane, vocab_size - 1), axis=0)


@triton.jit
def _share_of(mass: tl.tensor, share: tl.tensor) -> tl.tensor:
    """The least integer that is not below the share, at least 1; int64."""
    return tl.maximum(_ceil(share.to(tl.float64) * mass.to(tl.float64)), 1)


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
                "candidates": "*fp32",
                "vocab_size": size_type,
                "row_stride": size_type,
            },
            constexprs={"capacity": CAPACITY, "block_size": BLOCK_SIZE},
            num_warps=NUM_WARPS,
        )
        for dtype in ("bf16", "fp32")
        for size_type, suffix in (("i32:16", ""), ("i32", "_unaligned"))
    ]
