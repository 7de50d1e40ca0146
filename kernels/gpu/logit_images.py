"""What sampling kernels make of a logit: its image and its mass.

The image of a logit is an integer in the order of the numbers. Masses are integers too, so that
their sums do not depend on the order of summation, nor on the size of a block; see
`reference.sample_rows`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trunkline.kernels import reference

MASS: tl.constexpr = tl.constexpr(float(reference.MASS_OF_LARGEST))
LEAST_IMAGE: tl.constexpr = tl.constexpr(-(2**31))
GREATEST_IMAGE: tl.constexpr = tl.constexpr(2**31 - 1)
# Of minus infinity.
IMAGE_OF_NOTHING: tl.constexpr = tl.constexpr(-(2**31) + 2**23 - 1)


@triton.jit
def load_logits(logits: tl.tensor, token: tl.tensor, vocab_size: tl.tensor) -> tl.tensor:
    """Float32; -inf behind the vocabulary."""
    return tl.load(logits + token, mask=token < vocab_size, other=-float("inf")).to(tl.float32)


@triton.jit
def mass_of(logit: tl.tensor, maximum: tl.tensor, inverse: tl.tensor) -> tl.tensor:
    """[...] int32."""
    return (tl.exp((logit - maximum) * inverse) * MASS).to(tl.int32)


@triton.jit
def image_of(number: tl.tensor) -> tl.tensor:
    """Int32 in the order of the numbers; one image for both zeros."""
    bits = tl.where(number == 0.0, 0.0, number).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def number_of(image: tl.tensor) -> tl.tensor:
    """The number whose image it is."""
    return (image ^ ((image >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def image_between(number: tl.tensor, low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """The number's image, or the next one in ]low, high[; int64."""
    return tl.minimum(tl.maximum(image_of(number).to(tl.int64), low + 1), high - 1)
