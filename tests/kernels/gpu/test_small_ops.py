"""The Triton kernels around the attention against the reference.

Outputs are poisoned: memory that a kernel should have written and did not is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from trunkline.kernels import reference
from trunkline.kernels.gpu import add_rms_norm as norm
from trunkline.kernels.gpu.rope_and_cache import rope_and_cache
from trunkline.kernels.gpu.silu_mul import silu_mul

pytestmark = pytest.mark.interpreter

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Of single elements: some units in the last place.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
EPS = 1e-5


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """Every `empty` tensor starts as NaN."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


def close(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype
    tolerance = TOLERANCES[a.dtype]
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def random(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(device, dtype)


def test_outputs_are_poisoned(device: torch.device) -> None:
    assert torch.empty(7, device=device).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_rows", "size"), [(1, 1), (3, 7), (5, 576), (2, 1001), (2, 4096), (1, 16384)]
)
def test_rms_norm(num_rows: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
    x, residual = (
        scale * random(num_rows, size + i, dtype=dtype, device=device)[:, :size].contiguous()
        for i, scale in enumerate((3, 1))
    )
    weight = random(size, dtype=dtype, device=device)
    before = x.clone(), residual.clone()
    close(norm.rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))
    normed, total = norm.add_rms_norm(x, residual, weight, EPS)
    expected_normed, expected_total = reference.add_rms_norm(x, residual, weight, EPS)
    close(normed, expected_normed)
    close(total, expected_total)
    # Triton's interpreter rounds to bfloat16 towards zero.
    assert dtype == torch.bfloat16 or torch.equal(total, expected_total)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


def test_rms_norm_of_leading_dimensions(device: torch.device) -> None:
    x = random(2, 3, 40, dtype=torch.float32, device=device)
    weight = random(40, dtype=torch.float32, device=device)
    close(norm.rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))
    assert norm.rms_norm(x[:0], weight, EPS).shape == (0, 3, 40)


def test_rows_that_do_not_fit_are_refused(device: torch.device) -> None:
    size = norm.MAX_SIZE + 1
    x, weight = torch.zeros(1, size, device=device), torch.ones(size, device=device)
    with pytest.raises(ValueError, match="16385 elements; the kernel takes up to 16384"):
        norm.rms_norm(x, weight, EPS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "size"), [(0, 8), (1, 1), (3, 17), (2, 1024), (2, 2500)])
def test_silu_mul(num_rows: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
    gate_up = 4 * random(num_rows, 2 * size, dtype=dtype, device=device)
    before = gate_up.clone()
    close(silu_mul(gate_up), reference.silu_mul(gate_up))
    assert torch.equal(gate_up, before)


def test_silu_mul_far_from_zero(device: torch.device) -> None:
    gate = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4], device=device)
    found = silu_mul(torch.cat([gate, torch.ones_like(gate)]).unsqueeze(0))
    close(found, torch.tensor([[0.0, 0.0, 0.0, 90.0, 1e4]], device=device))


@dataclass(frozen=True)
class Shape:
    """Heads and pages of a case."""

    num_rows: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int


SHAPES = [
    Shape(1, 1, 1, 64, 16),
    Shape(3, 9, 3, 64, 16),
    Shape(2, 5, 1, 80, 32),
    Shape(2, 6, 2, 96, 7),
    Shape(2, 32, 8, 128, 16),
    Shape(3, 14, 2, 128, 64),
    Shape(2, 16, 1, 256, 16),
    Shape(2, 3, 3, 40, 16),
]


@dataclass(frozen=True)
class RopeCase:
    """Inputs of one call, and the caches, all NaN."""

    qkv: Tensor
    qk_norm: Tensor | None
    cos: Tensor
    signed_sin: Tensor
    key_cache: Tensor
    value_cache: Tensor
    slots: Tensor

    @staticmethod
    def make(
        shape: Shape, dtype: torch.dtype, cache_dtype: torch.dtype, device: torch.device
    ) -> RopeCase:
        """Slots are distinct and spread over the pages; the last row is padding, if not alone."""
        num_rotated = shape.num_heads + shape.num_kv_heads
        num_all, half = num_rotated + shape.num_kv_heads, shape.head_dim // 2
        num_pages = 4
        angles = random(shape.num_rows, 1, half, dtype=torch.float32, device=device)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        cache = (num_pages, shape.page_size, shape.num_kv_heads, shape.head_dim)
        generator = torch.Generator().manual_seed(0)
        slots = torch.randperm(num_pages * shape.page_size, generator=generator)[: shape.num_rows]
        if shape.num_rows > 1:
            slots[-1] = -1
        return RopeCase(
            qkv=random(shape.num_rows, num_all, shape.head_dim, dtype=dtype, device=device),
            qk_norm=random(num_rotated, shape.head_dim, dtype=dtype, device=device),
            cos=torch.cat([cos, cos], -1),
            signed_sin=torch.cat([-sin, sin], -1),
            key_cache=torch.full(cache, torch.nan, device=device).to(cache_dtype),
            value_cache=torch.full(cache, torch.nan, device=device).to(cache_dtype),
            slots=slots.to(device),
        )

    def expected(
        self, shape: Shape, *, has_norm: bool, key_scale: float, value_scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(query, key cache, value cache) by the reference."""
        sizes = [shape.num_heads + shape.num_kv_heads, shape.num_kv_heads]
        rotated, value = self.qkv.split(sizes, 1)
        if has_norm:
            assert self.qk_norm is not None
            rotated = reference.rms_norm(rotated, self.qk_norm, EPS)
        half = shape.head_dim // 2
        # Rounded once, at the end.
        rotated = reference.rope(
            rotated.float(), self.cos[:, 0, :half].float(), self.signed_sin[:, 0, half:].float()
        ).to(self.qkv.dtype)
        query, key = rotated.split([shape.num_heads, shape.num_kv_heads], 1)
        key_cache, value_cache = self.key_cache.clone(), self.value_cache.clone()
        reference.write_kv(key, value, key_cache, value_cache, self.slots, key_scale, value_scale)
        return query, key_cache, value_cache

    def run(
        self, shape: Shape, *, has_norm: bool, key_scale: float = 1.0, value_scale: float = 1.0
    ) -> Tensor:
        return rope_and_cache(
            self.qkv,
            shape.num_kv_heads,
            self.qk_norm if has_norm else None,
            EPS,
            self.cos,
            self.signed_sin,
            self.key_cache,
            self.value_cache,
            self.slots,
            key_scale,
            value_scale,
        )


def close_caches(found: Tensor, expected: Tensor) -> None:
    """Also that nothing else was written."""
    found, expected = found.to(torch.float32), expected.to(torch.float32)
    assert torch.equal(found.isnan(), expected.isnan())
    torch.testing.assert_close(found, expected, atol=3e-2, rtol=3e-2, equal_nan=True)


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_and_cache(
    dtype: torch.dtype, shape: Shape, has_norm: bool, device: torch.device
) -> None:
    case = RopeCase.make(shape, dtype, dtype, device)
    before = case.qkv.clone()
    query, keys, values = case.expected(shape, has_norm=has_norm, key_scale=1.0, value_scale=1.0)
    close(case.run(shape, has_norm=has_norm), query)
    close_caches(case.key_cache, keys)
    assert torch.equal(case.value_cache.nan_to_num(9.0), values.nan_to_num(9.0))
    assert torch.equal(case.qkv, before)


@pytest.mark.parametrize("shape", SHAPES[1:5], ids=str)
def test_float8_cache(shape: Shape, device: torch.device) -> None:
    case = RopeCase.make(shape, torch.float32, torch.float8_e4m3fn, device)
    scales = {"key_scale": 0.004, "value_scale": 0.25}
    query, keys, values = case.expected(shape, has_norm=False, **scales)
    close(case.run(shape, has_norm=False, **scales), query)
    # A key that the last bit of its rotation carries over the middle is rounded the other way.
    is_same = case.key_cache.view(torch.uint8) == keys.view(torch.uint8)
    assert is_same.float().mean() > 0.999
    assert torch.equal(case.key_cache.float().isnan(), keys.float().isnan())
    assert torch.equal(case.value_cache.view(torch.uint8), values.view(torch.uint8))
    assert case.key_cache.float().nan_to_num(0.0).abs().max() == reference.FP8_MAX


def test_rounding_to_float8(device: torch.device) -> None:
    """Every e4m3 number, the middle between each two, what lies just beside it, and the limits."""
    every = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middle = (every[1:] + every[:-1]) / 2
    sides = [middle, middle.nextafter(every[1:]), middle.nextafter(every[:-1])]
    limits = torch.tensor([449.0, 464.0, 480.0, 1e30, torch.inf, 1e-30, torch.nan])
    positive = torch.cat([every, *sides, limits])
    value = torch.cat([positive, -positive])
    shape = Shape(-(-len(value) // 64), 1, 1, 64, 16)
    value = torch.nn.functional.pad(value, (0, shape.num_rows * 64 - len(value)))
    case = RopeCase.make(shape, torch.float32, torch.float8_e4m3fn, device)
    case.qkv[:, 2] = value.view(-1, 64).to(device)
    case.run(shape, has_norm=False)
    _, _, values = case.expected(shape, has_norm=False, key_scale=1.0, value_scale=1.0)
    same = case.value_cache.view(torch.uint8) == values.view(torch.uint8)
    both_nan = case.value_cache.float().isnan() & values.float().isnan()
    assert (same | both_nan).all()


def test_caches_of_other_strides(device: torch.device) -> None:
    """Key and value interleaved page by page in one allocation."""
    shape = Shape(3, 4, 2, 64, 8)
    case = RopeCase.make(shape, torch.float32, torch.float32, device)
    query, keys, values = case.expected(shape, has_norm=False, key_scale=1.0, value_scale=1.0)
    pool = torch.full((4, 2, 8, 2, 64), torch.nan, device=device)
    found = rope_and_cache(
        case.qkv, 2, None, EPS, case.cos, case.signed_sin, pool[:, 0], pool[:, 1], case.slots
    )
    close(found, query)
    close_caches(pool[:, 0], keys)
    close_caches(pool[:, 1], values)


def test_no_rows(device: torch.device) -> None:
    shape = Shape(0, 4, 2, 64, 8)
    case = RopeCase.make(shape, torch.float32, torch.float32, device)
    assert case.run(shape, has_norm=True).shape == (0, 4, 64)
    assert case.key_cache.isnan().all()
