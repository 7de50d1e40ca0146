"""The compiled CPU kernels against the reference, and torch where they cannot be had."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from trunkline.kernels import (
    attention_native,
    dispatch,
    elementwise_native,
    native,
    reference,
    sampling_native,
)
from trunkline.kernels.dispatch import AttentionPlan
from trunkline.kernels.linear import GatedLinear, Linear
from trunkline.kernels.native import NativeLibrary
from trunkline.kernels.spans import SpanList
from trunkline.kernels.work_list import build_work_list

DTYPES = [torch.float32, torch.bfloat16]
Groups = list[tuple[list[int], list[tuple[int, int]]]]

# Chains in pages, members as (own computed tokens, new tokens).
CHAIN: Groups = [
    ([2, 1, 3], [(5, 1), (0, 80), (0, 3), (9, 1), (17, 64)]),
    ([], [(40, 1), (0, 65)]),
    ([4], [(0, 1), (3, 2)]),
]
STEPS: dict[str, Groups] = {
    "one token": [([], [(0, 1)])],
    "decode of uneven lengths": [([], [(n, 1) for n in (0, 1, 7, 63, 64, 65, 200, 1100)])],
    "prompt": [([], [(0, 150)])],
    "chunk after chunk": [([], [(100, 70), (33, 64)])],
    "chain with chunks and decode": CHAIN,
    "large group": [([5], [(n, 1) for n in range(70)])],
}


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)


def tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 2e-2


def close(actual: Tensor, expected: Tensor) -> None:
    limit = tolerance(expected.dtype)
    torch.testing.assert_close(actual, expected, atol=limit, rtol=limit)


def make_cache(spans: SpanList, num_kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Float32 keys and values at every slot that a span reads, NaN everywhere else."""
    num_pages = int(spans.page_tables.max()) + 2
    used = torch.zeros(num_pages, spans.page_size, dtype=torch.bool)
    for i in range(spans.num_spans):
        positions = np.arange(spans.kv_start[i], spans.kv_end[i])
        pages = spans.page_tables[spans.entry[i], positions // spans.page_size]
        used[pages, positions % spans.page_size] = True
    key, value = (torch.randn(*used.shape, num_kv_heads, head_dim) for _ in range(2))
    key[~used] = torch.nan
    value[~used] = torch.nan
    return key, value


def check_attention(
    library: NativeLibrary,
    spans: SpanList,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    window: int | None = None,
    num_threads: int = 2,
) -> None:
    torch.manual_seed(0)
    query = torch.randn(spans.num_rows, num_heads, head_dim).to(dtype)
    key, value = (cache.to(dtype) for cache in make_cache(spans, num_kv_heads, head_dim))
    scale = head_dim**-0.5
    expected = reference.paged_attention(query, key, value, spans, scale, window)
    work = build_work_list(spans, window, num_threads)
    out = attention_native.paged_attention(library, query, key, value, work, scale)
    close(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [8, 16, 64])
@pytest.mark.parametrize("step", STEPS)
def test_every_kind_of_step(
    library: NativeLibrary,
    make_spans: Callable[..., SpanList],
    step: str,
    page_size: int,
    dtype: torch.dtype,
) -> None:
    spans = make_spans(np.random.default_rng(1), page_size, STEPS[step])
    check_attention(library, spans, 6, 2, 64, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 5, 7, 8, 16])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 256])
def test_head_shapes(
    library: NativeLibrary,
    make_spans: Callable[..., SpanList],
    ratio: int,
    head_dim: int,
    dtype: torch.dtype,
) -> None:
    spans = make_spans(np.random.default_rng(2), 8, CHAIN)
    check_attention(library, spans, 2 * ratio, 2, head_dim, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [1, 5, 16, 100, 1000])
@pytest.mark.parametrize("step", STEPS)
def test_sliding_window(
    library: NativeLibrary,
    make_spans: Callable[..., SpanList],
    step: str,
    window: int,
    dtype: torch.dtype,
) -> None:
    spans = make_spans(np.random.default_rng(4), 8, STEPS[step])
    check_attention(library, spans, 4, 2, 16, dtype, window)


@pytest.mark.parametrize("seed", range(12))
def test_random_steps(
    library: NativeLibrary, make_spans: Callable[..., SpanList], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    groups: Groups = []
    for _ in range(rng.integers(1, 5)):
        chain = rng.integers(1, 5, size=rng.integers(0, 4)).tolist()
        num_members = int(rng.integers(1, 12))
        new = np.where(rng.random(num_members) < 0.6, 1, rng.integers(1, 120, num_members))
        own = rng.integers(0, 400, num_members)
        groups.append((chain, list(zip(own.tolist(), new.tolist(), strict=True))))
    spans = make_spans(rng, int(rng.choice([4, 8, 32])), groups)
    window = int(rng.integers(1, 300)) if seed % 4 == 0 else None
    num_threads = int(rng.integers(1, 9))
    check_attention(library, spans, 6, 3, 32, DTYPES[seed % 2], window, num_threads)


def test_large_scores_do_not_overflow(
    library: NativeLibrary, make_spans: Callable[..., SpanList]
) -> None:
    spans = make_spans(np.random.default_rng(0), 8, CHAIN)
    torch.manual_seed(0)
    query = 300 * torch.randn(spans.num_rows, 2, 16)
    key, value = make_cache(spans, 1, 16)
    expected = reference.paged_attention(query, key, value, spans, 0.25)
    work = build_work_list(spans, None, 2)
    out = attention_native.paged_attention(library, query, key, value, work, 0.25)
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=1e-3)


def test_items_cover_every_row_and_key_once(make_spans: Callable[..., SpanList]) -> None:
    spans = make_spans(np.random.default_rng(0), 8, STEPS["chain with chunks and decode"])
    for num_threads in (1, 2, 64):
        work = build_work_list(spans, None, num_threads)
        seen = np.zeros((spans.num_rows, int(spans.positions.max()) + 1), np.int64)
        for row_start, row_end, _, kv_start, kv_end, causal, _ in work.items.tolist():
            for row in range(row_start, row_end):
                end = min(kv_end, spans.positions[row] + 1) if causal else kv_end
                seen[row, kv_start:end] += 1
        expected = np.arange(seen.shape[1]) <= spans.positions[:, None]
        assert (seen == expected).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 7), (5, 64), (40, 577)])
def test_add_rms_norm(library: NativeLibrary, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, residual = (3 * torch.randn(2, *shape)).to(dtype)
    weight = torch.randn(shape[1]).to(dtype)
    actual = elementwise_native.add_rms_norm(library, x, residual, weight, 1e-5)
    expected = reference.add_rms_norm(x, residual, weight, 1e-5)
    close(actual[0], expected[0])
    close(actual[1], expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 17, 64, 100])
def test_silu_mul(library: NativeLibrary, dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(0)
    gate_up = (10 * torch.randn(5, 2 * size)).to(dtype)
    gate_up[0, 0], gate_up[1, 0] = -200.0, 200.0
    close(elementwise_native.silu_mul(library, gate_up), reference.silu_mul(gate_up))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 15, 16, 17, 1000])
def test_largest(library: NativeLibrary, dtype: torch.dtype, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    # Few different values, so that the largest comes more than once.
    logits = torch.randint(-9, 9, (70, size), generator=generator).to(dtype)
    logits[3] = -torch.inf
    logits[4, -1] = 1e4
    expected = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)
    assert torch.equal(sampling_native.largest(library, logits), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [2, 16, 40, 64, 80, 256])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_and_cache(
    library: NativeLibrary, dtype: torch.dtype, head_dim: int, normed: bool
) -> None:
    torch.manual_seed(0)
    num_rows, num_heads, num_kv_heads = 6, 3, 2
    qkv = torch.randn(num_rows, num_heads + 2 * num_kv_heads, head_dim).to(dtype)
    qk_norm = torch.randn(num_heads + num_kv_heads, head_dim).to(dtype) if normed else None
    angles = torch.randn(num_rows, head_dim // 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    slots = torch.tensor([3, 0, 19, 7, 8, 15])
    shape = (5, 4, num_kv_heads, head_dim)
    caches = [torch.full(shape, torch.nan, dtype=dtype) for _ in range(4)]

    query = elementwise_native.rope_and_cache(
        library,
        qkv,
        num_kv_heads,
        qk_norm,
        1e-5,
        torch.cat([cos, cos], 1).unsqueeze(1),
        torch.cat([-sin, sin], 1).unsqueeze(1),
        caches[0],
        caches[1],
        slots,
    )

    rotated, value = qkv[:, : num_heads + num_kv_heads], qkv[:, num_heads + num_kv_heads :]
    if qk_norm is not None:
        rotated = reference.rms_norm(rotated, qk_norm, 1e-5)
    rotated = reference.rope(rotated.float(), cos.float(), sin.float()).to(dtype)
    reference.write_kv(rotated[:, num_heads:], value, caches[2], caches[3], slots)
    close(query, rotated[:, :num_heads])
    assert torch.equal(caches[1].nan_to_num(9.0), caches[3].nan_to_num(9.0))
    assert caches[0].isnan().sum() == (20 - num_rows) * num_kv_heads * head_dim
    close(caches[0].nan_to_num(9.0), caches[2].nan_to_num(9.0))


@pytest.mark.parametrize("num_rows", [1, 5, 6, 7, 64, 200])
@pytest.mark.parametrize(("num_columns", "depth"), [(1, 2), (64, 30), (100, 64), (193, 576)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_packed_linear(
    library: NativeLibrary, num_rows: int, num_columns: int, depth: int, has_bias: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(num_rows, depth).bfloat16()
    weight = (torch.randn(num_columns, depth) * depth**-0.5).bfloat16()
    bias = torch.randn(num_columns).bfloat16() if has_bias else None
    layer = Linear(weight, bias)
    expected = torch.nn.functional.linear(
        x.float(), weight.float(), None if bias is None else bias.float()
    )
    close(layer(x), expected.bfloat16())
    assert layer._library is library


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 7, 200])
@pytest.mark.parametrize("size", [20, 32, 160])
@pytest.mark.parametrize("has_bias", [False, True])
def test_gated_linear(
    library: NativeLibrary, dtype: torch.dtype, num_rows: int, size: int, has_bias: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(num_rows, 48).to(dtype)
    weight = (torch.randn(2 * size, 48) * 0.3).to(dtype)
    bias = torch.randn(2 * size).to(dtype) if has_bias else None
    product = Linear(weight, bias)(x)
    assert torch.equal(GatedLinear(weight, bias)(x), elementwise_native.silu_mul(library, product))


@pytest.mark.parametrize(("dtype", "depth"), [(torch.float32, 64), (torch.bfloat16, 33)])
def test_linear_that_is_not_packed(dtype: torch.dtype, depth: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, depth).to(dtype), torch.randn(8, depth).to(dtype)
    assert torch.equal(Linear(weight)(x), torch.nn.functional.linear(x, weight))


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_library_torch_gives_the_same(
    make_spans: Callable[..., SpanList], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    spans = make_spans(np.random.default_rng(0), 8, CHAIN)
    key, value = (cache.to(dtype) for cache in make_cache(spans, 2, 16))
    query = torch.randn(spans.num_rows, 4, 16).to(dtype)
    plan = AttentionPlan(spans, query.device)
    out = dispatch.paged_attention(query, key, value, plan, 0.25)
    close(out, reference.paged_attention(query, key, value, spans, 0.25))
    assert "work_list" not in vars(plan)  # the native variant did not run

    x, residual = torch.randn(2, 5, 32).to(dtype)
    weight = torch.randn(32).to(dtype)
    actual = dispatch.add_rms_norm(x, residual, weight, 1e-5)
    close(actual[0], reference.add_rms_norm(x, residual, weight, 1e-5)[0])
    close(dispatch.silu_mul(x), reference.silu_mul(x))
    layer = Linear(residual)
    assert layer._library is None
    close(layer(x), torch.nn.functional.linear(x, residual))


def test_both_variants_of_rope_and_cache_agree(
    library: NativeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    qkv, qk_norm = torch.randn(6, 7, 16), torch.randn(5, 16)
    cos, signed_sin = torch.randn(2, 6, 1, 16)
    cos[..., 8:] = cos[..., :8]
    slots = torch.tensor([3, 0, 19, 7, 8, 15])
    results = []
    for found in (library, None):
        monkeypatch.setattr(native, "library", lambda found=found: found)
        key_cache, value_cache = torch.zeros(2, 5, 4, 2, 16)
        query = dispatch.rope_and_cache(
            qkv, 2, qk_norm, 1e-5, cos, signed_sin, key_cache, value_cache, slots
        )
        results.append((query, key_cache, value_cache))
    for fast, slow in zip(*results, strict=True):
        close(fast, slow)
