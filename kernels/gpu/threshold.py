"""Where top-k and top-p cut a row of logits off: few passes over the row, then a copy of a part.

Imported by the sampling kernel, whose program goes over one row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trunkline.kernels.gpu.logit_images import (
    GREATEST_IMAGE,
    IMAGE_OF_NOTHING,
    LEAST_IMAGE,
    image_between,
    image_of,
    load_logits,
    mass_of,
    number_of,
)

# A token in a sum of packed weights, above the sum of the masses. A lane has less than 2^14 tokens.
TOKEN_SHIFT: tl.constexpr = tl.constexpr(44)
PACKED_TOKEN: tl.constexpr = tl.constexpr(2**44)
PACKED_MASS: tl.constexpr = tl.constexpr(2**44 - 1)


@triton.jit
def find_threshold(
    logits: tl.tensor,
    candidates: tl.tensor,
    vocab_size: tl.tensor,
    low: tl.tuple,
    high: tl.tuple,
    limit: tl.tensor,
    maximum: tl.tensor,
    inverse: tl.tensor,
    by_mass: tl.tensor,
    capacity: tl.constexpr,
    block_size: tl.constexpr,
) -> tl.tuple:
    """The largest image from which on the tokens weigh at least `limit`.

    An end is (image, number of the tokens from it on, their mass), all int64. Passes over the row
    move the ends until at most `capacity` tokens are between them, which takes none for most rows.
    These tokens are copied, and the rest is done with the copy.

    Args:
        candidates: [capacity] float32, overwritten.
        low: from here on the tokens weigh at least `limit`.
        high: above `low`; from here on they weigh less.
        limit: int64, at least 1.
        by_mass: bool, a token weighs its mass; else 1.

    Returns:
        The end at the image.
    """
    low_image, low_count, low_mass = low
    high_image, high_count, high_mass = high
    # Between minus infinity and a number there is no number half way.
    splits_numbers = low_image > IMAGE_OF_NOTHING
    while (high_image - low_image > 1) & (low_count - high_count > capacity):
        # Splitting numbers is fast where logits are spread evenly, splitting images bounds the
        # passes wherever they lie. The lowest split decides rows with many tokens at the low end.
        a = low_image + 1
        width = high_image - low_image
        b, c, d = low_image + width // 4, low_image + width // 2, low_image + width // 4 * 3
        if splits_numbers:
            least, most = (
                number_of(low_image.to(tl.int32)),
                number_of((high_image - 1).to(tl.int32)),
            )
            b = image_between(0.75 * least + 0.25 * most, low_image, high_image)
            c = image_between(0.5 * least + 0.5 * most, low_image, high_image)
            d = image_between(0.25 * least + 0.75 * most, low_image, high_image)
        splits_numbers = not splits_numbers
        b, c, d = tl.maximum(b, a), tl.maximum(c, a), tl.maximum(d, a)
        at_a, at_b, at_c, at_d, first = weigh(
            logits, vocab_size, low_image, a, b, c, d, maximum, inverse, block_size
        )
        low = low_image, low_count, low_mass
        high = high_image, high_count, high_mass
        low, high = closer_ends(low, high, at_a, limit, by_mass)
        low, high = closer_ends(low, high, at_b, limit, by_mass)
        low, high = closer_ends(low, high, at_c, limit, by_mass)
        low, high = closer_ends(low, high, at_d, limit, by_mass)
        low_image, low_count, low_mass = low
        high_image, high_count, high_mass = high
        # An image that occurs: if many tokens have the same logit, the next pass ends the search.
        low_image = tl.maximum(low_image, first)

    if high_image - low_image > 1:
        num_candidates = _gather(
            logits, candidates, vocab_size, low_image, high_image, capacity, block_size
        )
        low_image = _bisect(
            candidates,
            num_candidates,
            low_image,
            high_image,
            limit - tl.where(by_mass, high_mass, high_count),
            maximum,
            inverse,
            by_mass,
            block_size,
        )
        low_count, low_mass = weigh_from(
            candidates, num_candidates, low_image, maximum, inverse, block_size
        )
        low_count += high_count
        low_mass += high_mass
    return low_image, low_count, low_mass


@triton.jit
def closer_ends(
    low: tl.tuple, high: tl.tuple, between: tl.tuple, limit: tl.tensor, by_mass: tl.tensor
) -> tl.tuple:
    """(low, high) with one of them moved to `between`, if that is between them.

    All three are ends, see `find_threshold`.
    """
    low_image, low_count, low_mass = low
    high_image, high_count, high_mass = high
    image, count, mass = between
    is_enough = tl.where(by_mass, mass, count) >= limit
    is_between = (image > low_image) & (image < high_image)
    is_low, is_high = is_between & is_enough, is_between & (is_enough == 0)
    low_image = tl.where(is_low, image, low_image)
    low_count = tl.where(is_low, count, low_count)
    low_mass = tl.where(is_low, mass, low_mass)
    high_image = tl.where(is_high, image, high_image)
    high_count = tl.where(is_high, count, high_count)
    high_mass = tl.where(is_high, mass, high_mass)
    return (low_image, low_count, low_mass), (high_image, high_count, high_mass)


@triton.jit
def weigh(
    logits: tl.tensor,
    vocab_size: tl.tensor,
    low: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    d: tl.tensor,
    maximum: tl.tensor,
    inverse: tl.tensor,
    block_size: tl.constexpr,
) -> tl.tuple:
    """The ends at four images, which are above minus infinity's; see `find_threshold`.

    Returns:
        The four, and the least image from `low` on that occurs, int64.
    """
    lane = tl.arange(0, block_size)
    above_a = tl.zeros([block_size], tl.int64)
    above_b = tl.zeros([block_size], tl.int64)
    above_c = tl.zeros([block_size], tl.int64)
    above_d = tl.zeros([block_size], tl.int64)
    first = tl.full([block_size], GREATEST_IMAGE, tl.int32)
    split_a, split_b, split_c, split_d = (
        a.to(tl.int32),
        b.to(tl.int32),
        c.to(tl.int32),
        d.to(tl.int32),
    )
    bottom = low.to(tl.int32)
    for start in range(0, vocab_size, block_size):
        logit = load_logits(logits, start + lane, vocab_size)
        image = image_of(logit)
        packed = mass_of(logit, maximum, inverse).to(tl.int64) + PACKED_TOKEN
        above_a += tl.where(image >= split_a, packed, 0)
        above_b += tl.where(image >= split_b, packed, 0)
        above_c += tl.where(image >= split_c, packed, 0)
        above_d += tl.where(image >= split_d, packed, 0)
        first = tl.minimum(first, tl.where(image >= bottom, image, GREATEST_IMAGE))
    return (
        _end(a, above_a),
        _end(b, above_b),
        _end(c, above_c),
        _end(d, above_d),
        tl.min(first, axis=0).to(tl.int64),
    )


@triton.jit
def _end(image: tl.tensor, packed: tl.tensor) -> tl.tuple:
    """The end at `image`, of packed sums."""
    return image, tl.sum(packed >> TOKEN_SHIFT, axis=0), tl.sum(packed & PACKED_MASS, axis=0)


@triton.jit
def _gather(
    logits: tl.tensor,
    candidates: tl.tensor,
    vocab_size: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    capacity: tl.constexpr,
    block_size: tl.constexpr,
) -> tl.tensor:
    """Copy the logits with an image in [low, high), at most `capacity`; how many they are."""
    lane = tl.arange(0, block_size)
    num_found = vocab_size * 0
    # What was read of the copy before must have been read, what is written now must be there.
    tl.debug_barrier()
    for start in range(0, vocab_size, block_size):
        logit = load_logits(logits, start + lane, vocab_size)
        image = image_of(logit)
        is_found = (image >= low) & (image < high) & (start + lane < vocab_size)
        behind = num_found + tl.cumsum(is_found.to(tl.int32), axis=0)
        tl.store(candidates + behind - 1, logit, mask=is_found & (behind <= capacity))
        num_found += tl.sum(is_found.to(tl.int32), axis=0)
    tl.debug_barrier()
    return num_found


@triton.jit
def _bisect(
    logits: tl.tensor,
    num_logits: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    limit: tl.tensor,
    maximum: tl.tensor,
    inverse: tl.tensor,
    by_mass: tl.tensor,
    block_size: tl.constexpr,
) -> tl.tensor:
    """The largest image from which on the logits weigh at least `limit`.

    Invariant: those from `low` on weigh at least that much, those from `high` on less. Both ends
    move to the next image that occurs, so that bisection ends as soon as one distinct logit is
    left. It halves the numbers and the images by turns.

    Args:
        logits: [num_logits], all in [low, high).
        low: int64 image.
        high: int64 image.
        limit: int64, at least 1.
        by_mass: see `find_threshold`.
    """
    lane = tl.arange(0, block_size)
    halves_numbers = low > IMAGE_OF_NOTHING
    while high - low > 1:
        middle = low + (high - low) // 2
        if halves_numbers:
            number = 0.5 * number_of(low.to(tl.int32)) + 0.5 * number_of((high - 1).to(tl.int32))
            middle = image_between(number, low, high)
        halves_numbers = not halves_numbers

        weights = tl.zeros([block_size], tl.int64)
        above = tl.full([block_size], GREATEST_IMAGE, tl.int32)
        below = tl.full([block_size], LEAST_IMAGE, tl.int32)
        split = middle.to(tl.int32)
        for start in range(0, num_logits, block_size):
            logit = load_logits(logits, start + lane, num_logits)
            image = image_of(logit)
            each = tl.where(by_mass, mass_of(logit, maximum, inverse), 1)
            is_above = image >= split
            weights += tl.where(is_above, each, 0)
            above = tl.minimum(above, tl.where(is_above, image, GREATEST_IMAGE))
            below = tl.maximum(below, tl.where(is_above, LEAST_IMAGE, image))
        if tl.sum(weights, axis=0) >= limit:
            low = tl.min(above, axis=0).to(tl.int64)
        else:
            high = tl.maximum(tl.max(below, axis=0).to(tl.int64), low) + 1
    return low


@triton.jit
def weigh_from(
    logits: tl.tensor,
    num_logits: tl.tensor,
    threshold: tl.tensor,
    maximum: tl.tensor,
    inverse: tl.tensor,
    block_size: tl.constexpr,
) -> tl.tuple:
    """(number, mass) of the logits whose image is at least `threshold`; int64."""
    lane = tl.arange(0, block_size)
    count = tl.zeros([block_size], tl.int64)
    mass = tl.zeros([block_size], tl.int64)
    for start in range(0, num_logits, block_size):
        logit = load_logits(logits, start + lane, num_logits)
        is_above = (image_of(logit) >= threshold) & (start + lane < num_logits)
        count += is_above.to(tl.int64)
        mass += tl.where(is_above, mass_of(logit, maximum, inverse), 0)
    return tl.sum(count, axis=0), tl.sum(mass, axis=0)
