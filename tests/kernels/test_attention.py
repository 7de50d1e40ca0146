"""Tiled paged attention against the reference, and the reference against plain attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from trunkline.kernels.attention import plan_attention
from trunkline.kernels.attention_cpu import cpu_tile
from trunkline.kernels.attention_cuda import matmul_tile
from trunkline.kernels.attention_tiles import TileKernel, run_attention
from trunkline.kernels.dispatch import AttentionPlan, paged_attention
from trunkline.kernels.reference import paged_attention as reference_attention
from trunkline.kernels.spans import SpanList

CPU = torch.device("cpu")
Groups = list[tuple[list[int], list[tuple[int, int]]]]

# Chains in pages, members as (own computed tokens, new tokens).
STEPS: dict[str, Groups] = {
    "one token": [([], [(0, 1)])],
    "decode of uneven lengths": [([], [(n, 1) for n in (0, 1, 7, 8, 63, 64, 65, 200, 201)])],
    "prompt": [([], [(0, 150)])],
    "chunk after chunk": [([], [(100, 70), (33, 64)])],
    "group in decode": [([3], [(n, 1) for n in (1, 2, 30, 31)])],
    "chain with chunks and decode": [
        ([2, 1, 3], [(5, 1), (0, 80), (0, 3), (9, 1), (17, 64)]),
        ([], [(40, 1), (0, 65)]),
        ([4], [(0, 1), (3, 2)]),
    ],
    "large group": [([5], [(n, 1) for n in range(70)])],
    "one token below a node": [([2], [(0, 1), (0, 1)])],
}


def make_cache(
    spans: SpanList, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Keys and values at every slot that a span reads, NaN everywhere else."""
    num_pages = int(spans.page_tables.max()) + 2
    shape = (num_pages, spans.page_size, num_kv_heads, head_dim)
    used = torch.zeros(shape[:2], dtype=torch.bool)
    for i in range(spans.num_spans):
        positions = np.arange(spans.kv_start[i], spans.kv_end[i])
        pages = spans.page_tables[spans.entry[i], positions // spans.page_size]
        used[pages, positions % spans.page_size] = True
    key, value = (torch.randn(shape).to(dtype) for _ in range(2))
    key[~used] = torch.nan
    value[~used] = torch.nan
    return key, value


def check(
    spans: SpanList,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    kernel: TileKernel = cpu_tile,
    window: int | None = None,
) -> None:
    torch.manual_seed(0)
    query = torch.randn(spans.num_rows, num_heads, head_dim).to(dtype)
    key, value = make_cache(spans, num_kv_heads, head_dim, dtype)
    scale = head_dim**-0.5
    expected = reference_attention(query, key, value, spans, scale, window)
    assert expected.isfinite().all()
    work = plan_attention(spans, CPU, window)
    inputs = [t.clone() for t in (query, key, value)]
    out = run_attention(kernel, query, key, value, work, scale)
    atol = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out, expected, atol=atol, rtol=atol)
    for before, after in zip(inputs, (query, key, value), strict=True):
        assert torch.equal(before.nan_to_num(), after.nan_to_num())


@pytest.mark.parametrize("kernel", [cpu_tile, matmul_tile])
@pytest.mark.parametrize("page_size", [8, 16, 64])
@pytest.mark.parametrize("step", STEPS)
def test_every_kind_of_step(
    make_spans: Callable[..., SpanList], step: str, page_size: int, kernel: TileKernel
) -> None:
    spans = make_spans(np.random.default_rng(1), page_size, STEPS[step])
    check(spans, 6, 2, 16, torch.float32, kernel)
    check(spans, 6, 2, 16, torch.bfloat16, kernel)


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("head_dim", [16, 40, 64, 128])
def test_head_shapes(make_spans: Callable[..., SpanList], ratio: int, head_dim: int) -> None:
    spans = make_spans(np.random.default_rng(2), 8, STEPS["chain with chunks and decode"])
    check(spans, 2 * ratio, 2, head_dim, torch.float32)
    check(spans, ratio, 1, head_dim, torch.bfloat16)


@pytest.mark.parametrize("step", STEPS)
def test_consecutive_pages(make_spans: Callable[..., SpanList], step: str) -> None:
    spans = make_spans(np.random.default_rng(3), 16, STEPS[step], consecutive_pages=True)
    check(spans, 4, 2, 16, torch.float32)


@pytest.mark.parametrize("kernel", [cpu_tile, matmul_tile])
@pytest.mark.parametrize("window", [1, 5, 16, 100, 1000])
@pytest.mark.parametrize("step", STEPS)
def test_sliding_window(
    make_spans: Callable[..., SpanList], step: str, window: int, kernel: TileKernel
) -> None:
    spans = make_spans(np.random.default_rng(4), 8, STEPS[step])
    check(spans, 4, 2, 16, torch.float32, kernel, window)


@pytest.mark.parametrize("seed", range(20))
def test_random_steps(make_spans: Callable[..., SpanList], seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups: Groups = []
    for _ in range(rng.integers(1, 5)):
        chain = rng.integers(1, 5, size=rng.integers(0, 4)).tolist()
        num_members = int(rng.integers(1, 12))
        new = np.where(rng.random(num_members) < 0.6, 1, rng.integers(1, 120, num_members))
        own = rng.integers(0, 90, num_members)
        groups.append((chain, list(zip(own.tolist(), new.tolist(), strict=True))))
    spans = make_spans(rng, int(rng.choice([4, 8, 32])), groups)
    window = int(rng.integers(1, 300)) if seed % 4 == 0 else None
    check(spans, 6, 3, 16, torch.float32, window=window)


def test_the_reference_is_softmax_attention(make_spans: Callable[..., SpanList]) -> None:
    """One sequence, whose keys are in the cache in order, split in three spans."""
    torch.manual_seed(0)
    spans = make_spans(np.random.default_rng(0), 4, [([2, 1], [(0, 9)])], consecutive_pages=True)
    query = torch.randn(9, 4, 16)
    key, value = make_cache(spans, 2, 16, torch.float32)
    out = reference_attention(query, key, value, spans, 0.25)
    keys, values = (t.flatten(0, 1)[:21].transpose(0, 1).unsqueeze(0) for t in (key, value))
    mask = torch.arange(21) <= torch.arange(12, 21).unsqueeze(1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0),
        keys,
        values,
        attn_mask=mask,
        scale=0.25,
        enable_gqa=True,
    )
    torch.testing.assert_close(out, expected[0].transpose(0, 1), atol=1e-5, rtol=1e-5)


def test_dispatch_takes_the_device_of_the_query(make_spans: Callable[..., SpanList]) -> None:
    torch.manual_seed(0)
    spans = make_spans(np.random.default_rng(0), 8, STEPS["group in decode"])
    query = torch.randn(spans.num_rows, 4, 16)
    key, value = make_cache(spans, 2, 16, torch.float32)
    out = paged_attention(query, key, value, AttentionPlan(spans, CPU), 0.25)
    expected = reference_attention(query, key, value, spans, 0.25)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_neighbours_do_not_change_a_row(make_spans: Callable[..., SpanList]) -> None:
    """A decode row computed alone and among others gives close to the same."""
    torch.manual_seed(0)
    together = make_spans(
        np.random.default_rng(0),
        8,
        [([], [(n, 1) for n in (10, 300, 20, 5)])],
    )
    query = torch.randn(4, 4, 16)
    key, value = make_cache(together, 2, 16, torch.float32)
    out = run_attention(cpu_tile, query, key, value, plan_attention(together, CPU), 0.25)
    alone = SpanList(
        row_start=np.array([0]),
        row_end=np.array([1]),
        entry=np.array([2]),
        kv_start=together.kv_start[2:3],
        kv_end=together.kv_end[2:3],
        causal=np.array([True]),
        positions=together.positions[2:3],
        page_tables=together.page_tables,
        page_size=8,
    )
    single = run_attention(cpu_tile, query[2:3], key, value, plan_attention(alone, CPU), 0.25)
    torch.testing.assert_close(single[0], out[2], atol=1e-6, rtol=1e-6)
