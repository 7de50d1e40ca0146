"""The Triton attention against the reference."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.grids import slow
from trunkline.kernels import reference
from trunkline.kernels.gpu import device_work
from trunkline.kernels.gpu.attention import paged_attention
from trunkline.kernels.gpu.device_work import DeviceWork
from trunkline.kernels.gpu.launch import architecture, is_interpreted
from trunkline.kernels.gpu.tuning import find_tuning
from trunkline.kernels.spans import SpanList

pytestmark = pytest.mark.interpreter

SpanMaker = Callable[..., SpanList]
Groups = list[tuple[list[int], list[tuple[int, int]]]]

# Chains in pages, members as (own computed tokens, new tokens).
CHAIN: Groups = [
    ([2, 1], [(5, 1), (0, 40), (0, 1), (9, 1)]),
    ([], [(40, 1), (0, 3)]),
    ([1], [(0, 1)]),
]
STEPS: dict[str, Groups] = {
    "one token": [([], [(0, 1)])],
    "decode of uneven lengths": [([], [(n, 1) for n in (0, 1, 63, 64, 65, 200)])],
    "prompt": [([], [(0, 150)])],
    "chunk after chunk": [([], [(100, 70), (33, 64)])],
    "short chunks": [([], [(150, 2), (129, 3)])],
    "chain with chunks and decode": CHAIN,
    "large group": [([3], [(n % 5, 1) for n in range(20)])],
}
TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3}


@dataclass(frozen=True)
class Shape:
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    dtype: torch.dtype = torch.float32
    kv_dtype: torch.dtype | None = None
    window: int | None = None
    soft_cap: float | None = None
    key_scale: float = 1.0
    value_scale: float = 1.0
    is_small_apart: bool = False


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is allocated without a value holds NaN."""

    def poisoned(*size: object, **options: object) -> Tensor:
        made = allocate(*size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    allocate = torch.empty
    monkeypatch.setattr(torch, "empty", poisoned)


def make_cache(spans: SpanList, shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """Keys and values at every slot that a span reads, NaN everywhere else."""
    num_pages = int(spans.page_tables.max()) + 2
    used = torch.zeros(num_pages, spans.page_size, dtype=torch.bool)
    for i in range(spans.num_spans):
        positions = np.arange(spans.kv_start[i], spans.kv_end[i])
        pages = spans.page_tables[spans.entry[i], positions // spans.page_size]
        used[pages, positions % spans.page_size] = True
    key, value = torch.randn(2, *used.shape, shape.num_kv_heads, shape.head_dim)
    key[~used] = torch.nan
    value[~used] = torch.nan
    dtype = shape.kv_dtype or shape.dtype
    return key.to(device, dtype), value.to(device, dtype)


def make_work(spans: SpanList, shape: Shape, device: torch.device, max_rows: int) -> DeviceWork:
    tuning = None
    if shape.is_small_apart:
        kv_dtype = shape.kv_dtype or shape.dtype
        tuning = find_tuning(
            architecture(device), shape.head_dim, shape.dtype, kv_dtype, is_small_apart=True
        )
    return DeviceWork(
        device,
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        max_rows=max_rows,
        window=shape.window,
        dtype=shape.dtype,
        kv_dtype=shape.kv_dtype,
        tuning=tuning,
    )


def to_tables(spans: SpanList, device: torch.device) -> Tensor:
    return torch.from_numpy(spans.page_tables.astype(np.int32)).to(device)


def attend(
    query: Tensor, key: Tensor, value: Tensor, work: DeviceWork, tables: Tensor, shape: Shape
) -> Tensor:
    return paged_attention(
        query,
        key,
        value,
        work,
        tables,
        shape.head_dim**-0.5,
        soft_cap=shape.soft_cap,
        key_scale=shape.key_scale,
        value_scale=shape.value_scale,
    )


def expect(query: Tensor, key: Tensor, value: Tensor, spans: SpanList, shape: Shape) -> Tensor:
    key, value = key.float() * shape.key_scale, value.float() * shape.value_scale
    scale = shape.head_dim**-0.5
    return reference.paged_attention(query, key, value, spans, scale, shape.window, shape.soft_cap)


def check(spans: SpanList, shape: Shape, device: torch.device, spread: float = 1.0) -> DeviceWork:
    """Compare the two; the work that was done."""
    torch.manual_seed(0)
    query = spread * torch.randn(spans.num_rows, shape.num_heads, shape.head_dim)
    query = query.to(device, shape.dtype)
    key, value = make_cache(spans, shape, device)
    work = make_work(spans, shape, device, max_rows=spans.num_rows)
    work.load(spans)
    actual = attend(query, key, value, work, to_tables(spans, device), shape)
    limit = TOLERANCES[shape.dtype]
    expected = expect(query, key, value, spans, shape)
    torch.testing.assert_close(actual, expected, atol=limit, rtol=limit)
    return work


def read_fp8(monkeypatch: pytest.MonkeyPatch, as_bits: bool) -> None:
    """As devices with or without a conversion from e4m3 do."""
    monkeypatch.setattr(
        device_work,
        "find_tuning",
        lambda *key: replace(find_tuning(*key), reads_fp8_as_bits=as_bits),
    )


@pytest.mark.parametrize("page_size", [16, *slow(32, 64)])
@pytest.mark.parametrize("step", STEPS)
def test_every_kind_of_step(
    make_spans: SpanMaker, device: torch.device, step: str, page_size: int
) -> None:
    spans = make_spans(np.random.default_rng(1), page_size, STEPS[step])
    check(spans, Shape(), device)


@pytest.mark.parametrize("ratio", [1, 3, 8, *slow(2, 4, 5, 7, 16)])
def test_ratios_of_heads(make_spans: SpanMaker, device: torch.device, ratio: int) -> None:
    spans = make_spans(np.random.default_rng(2), 16, CHAIN)
    check(spans, Shape(num_heads=2 * ratio), device)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("head_dim", [80, 256, *slow(16, 64, 96, 128)])
def test_head_sizes(
    make_spans: SpanMaker, device: torch.device, head_dim: int, dtype: torch.dtype
) -> None:
    spans = make_spans(np.random.default_rng(3), 16, CHAIN)
    check(spans, Shape(3, 1, head_dim, dtype), device)


@pytest.mark.parametrize("is_small_apart", [False, True])
@pytest.mark.parametrize("head_dim", [80, *slow(64, 128)])
def test_every_kind_of_tile(
    make_spans: SpanMaker, device: torch.device, head_dim: int, is_small_apart: bool
) -> None:
    """Chunks that a small, a middle-sized and a large tile hold, below a prefix of whole blocks."""
    spans = make_spans(np.random.default_rng(17), 16, [([5], [(3, 45), (9, 20), (0, 2)])])
    shape = Shape(head_dim=head_dim, dtype=torch.float16, is_small_apart=is_small_apart)
    work = check(spans, shape, device)
    assert len(work.tuning.launches) == 1 + is_small_apart
    ends = work.lists[6 : 6 + len(work.tuning.kind_lines)].tolist()
    assert len(ends) == 3
    assert 0 < ends[0] < ends[1] < ends[2]


@pytest.mark.parametrize("step", ["one token", "prompt", *slow("chain with chunks and decode")])
@pytest.mark.parametrize("cache", [None, *slow(torch.float8_e4m3fn)])
def test_a_launch_apart_for_the_small_tiles(
    make_spans: SpanMaker, device: torch.device, step: str, cache: torch.dtype | None
) -> None:
    """Also where one of the two launches has nothing to do."""
    spans = make_spans(np.random.default_rng(18), 16, STEPS[step])
    shape = Shape(dtype=torch.float16, kv_dtype=cache, is_small_apart=True)
    work = check(spans, shape, device)
    assert work.num_programs == work.num_processors * work.tuning.launches[1].programs_per_processor


def test_page_size_that_is_no_power_of_two(make_spans: SpanMaker, device: torch.device) -> None:
    spans = make_spans(np.random.default_rng(3), 5, CHAIN)
    check(spans, Shape(), device)


@pytest.mark.parametrize("window", [5, 100, *slow(1, 16, 1000)])
@pytest.mark.parametrize(
    "step",
    ["chain with chunks and decode", "prompt", "short chunks", *slow("chunk after chunk")],
)
def test_sliding_window(
    make_spans: SpanMaker, device: torch.device, step: str, window: int
) -> None:
    spans = make_spans(np.random.default_rng(4), 16, STEPS[step])
    check(spans, Shape(window=window), device)


@pytest.mark.parametrize("soft_cap", [30.0, *slow(0.5)])
def test_soft_cap(make_spans: SpanMaker, device: torch.device, soft_cap: float) -> None:
    spans = make_spans(np.random.default_rng(5), 16, CHAIN)
    check(spans, Shape(soft_cap=soft_cap), device, spread=20)


def test_large_scores_do_not_overflow(make_spans: SpanMaker, device: torch.device) -> None:
    spans = make_spans(np.random.default_rng(6), 16, CHAIN)
    check(spans, Shape(), device, spread=300)


@pytest.mark.parametrize("reads_fp8_as_bits", [False, True])
@pytest.mark.parametrize("head_dim", [80, *slow(64)])
def test_fp8_cache(
    make_spans: SpanMaker,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    head_dim: int,
    reads_fp8_as_bits: bool,
) -> None:
    read_fp8(monkeypatch, reads_fp8_as_bits)
    spans = make_spans(np.random.default_rng(7), 16, CHAIN)
    shape = Shape(
        head_dim=head_dim,
        dtype=torch.float16,
        kv_dtype=torch.float8_e4m3fn,
        key_scale=0.5,
        value_scale=3.0,
    )
    check(spans, shape, device)


@pytest.mark.parametrize("reads_fp8_as_bits", [False, True])
def test_every_e4m3_number_reads_alike(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, reads_fp8_as_bits: bool
) -> None:
    """Each row sees one key, whose value is its result: 16 keys of 16 numbers each."""
    read_fp8(monkeypatch, reads_fp8_as_bits)
    row = np.arange(16)
    spans = SpanList(
        row_start=row,
        row_end=row + 1,
        entry=row,
        kv_start=np.zeros_like(row),
        kv_end=np.ones_like(row),
        causal=np.ones(16, np.bool_),
        positions=np.zeros_like(row),
        page_tables=row[:, None],
        page_size=1,
    )
    bits = torch.arange(256, dtype=torch.uint8, device=device)
    value = bits.view(torch.float8_e4m3fn).view(16, 1, 1, 16)
    key = torch.zeros(16, 1, 1, 16, device=device).to(torch.float8_e4m3fn)
    shape = Shape(1, 1, 16, torch.float16, torch.float8_e4m3fn)
    query = torch.zeros(16, 1, 16, dtype=torch.float16, device=device)
    work = make_work(spans, shape, device, max_rows=16)
    work.load(spans)
    actual = attend(query, key, value, work, to_tables(spans, device), shape)
    expected = value.half().view_as(actual)
    is_number = expected.isfinite()
    assert is_number.sum() == 254
    assert torch.equal(actual[is_number], expected[is_number])


def test_keys_are_split(
    make_spans: SpanMaker, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_work, "MIN_PART_KEYS", 32)
    monkeypatch.setattr(device_work, "PART_MULTIPLE", 16)
    spans = make_spans(np.random.default_rng(8), 16, [([20], [(0, 1), (3, 2)]), ([], [(300, 1)])])
    work = check(spans, Shape(), device)
    num_items = int(work.lists[6 + len(work.tuning.kind_lines) - 1])
    assert num_items > 2 * spans.num_spans
    items = work.lists[16 : 16 + 8 * num_items].view(-1, 8).cpu()
    starts = items[:, 3]
    assert (starts % 16 == 0).all()
    check(spans, Shape(window=50), device)


@pytest.mark.parametrize("seed", [0, 1, 3, *slow(2, 4, 5, 6, 7)])
def test_random_steps(
    make_spans: SpanMaker, device: torch.device, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(device_work, "MIN_PART_KEYS", 64)
    monkeypatch.setattr(device_work, "PART_MULTIPLE", 32)
    rng = np.random.default_rng(seed)
    groups: Groups = []
    for _ in range(rng.integers(1, 4)):
        chain = rng.integers(1, 3, size=rng.integers(0, 4)).tolist()
        num_members = int(rng.integers(1, 5))
        new = np.where(rng.random(num_members) < 0.6, 1, rng.integers(1, 60, num_members))
        own = rng.integers(0, 100, num_members)
        groups.append((chain, list(zip(own.tolist(), new.tolist(), strict=True))))
    spans = make_spans(rng, int(rng.choice([16, 32, 64])), groups)
    shape = Shape(
        num_heads=2 * int(rng.integers(1, 9)),
        head_dim=int(rng.choice([32, 48, 64])),
        dtype=[torch.float32, torch.float16][seed % 2],
        window=int(rng.integers(1, 150)) if seed % 4 == 0 else None,
    )
    check(spans, shape, device)


def test_one_work_takes_step_after_step(make_spans: SpanMaker, device: torch.device) -> None:
    """What an earlier, longer step left in the buffers is not done again."""
    rng = np.random.default_rng(9)
    shape = Shape(2, 1, 16)
    long, short = make_spans(rng, 16, CHAIN), make_spans(rng, 16, [([1], [(2, 1), (0, 1)])])
    work = make_work(long, shape, device, max_rows=200)
    addresses = [work.lists.data_ptr(), work.partial_out.data_ptr()]
    for spans in (long, short, long, short):
        query = torch.randn(spans.num_rows, 2, 16, device=device)
        key, value = make_cache(spans, shape, device)
        work.load(spans)
        work.partial_out.fill_(torch.nan)
        work.partial_lse.fill_(torch.nan)
        actual = attend(query, key, value, work, to_tables(spans, device), shape)
        expected = expect(query, key, value, spans, shape)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert [work.lists.data_ptr(), work.partial_out.data_ptr()] == addresses
    assert work.generation == 0


def test_buffers_grow(make_spans: SpanMaker, device: torch.device) -> None:
    spans = make_spans(np.random.default_rng(10), 16, CHAIN)
    shape = Shape(2, 1, 16)
    work = make_work(spans, shape, device, max_rows=1)
    work.load(spans)
    grown = work.generation
    assert grown > 0
    query = torch.randn(spans.num_rows, 2, 16, device=device)
    key, value = make_cache(spans, shape, device)
    actual = attend(query, key, value, work, to_tables(spans, device), shape)
    expected = expect(query, key, value, spans, shape)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    work.load(spans)
    assert work.generation == grown


def test_rows_without_a_span_are_left_alone(make_spans: SpanMaker, device: torch.device) -> None:
    spans = make_spans(np.random.default_rng(11), 16, CHAIN)
    shape = Shape(2, 1, 16)
    query = torch.randn(spans.num_rows + 5, 2, 16, device=device)
    key, value = make_cache(spans, shape, device)
    work = make_work(spans, shape, device, max_rows=100)
    work.load(spans)
    out = attend(query, key, value, work, to_tables(spans, device), shape)
    assert out[: spans.num_rows].isfinite().all()
    assert out[spans.num_rows :].isnan().all()


def test_strided_query_and_caches(make_spans: SpanMaker, device: torch.device) -> None:
    """The query as a part of one product, the caches as parts of one tensor."""
    spans = make_spans(np.random.default_rng(12), 16, CHAIN)
    shape = Shape(4, 2, 16)
    qkv = torch.randn(spans.num_rows, 8, 16, device=device)
    key, value = make_cache(spans, shape, device)
    caches = torch.stack([key, value], 1)
    work = make_work(spans, shape, device, max_rows=100)
    work.load(spans)
    actual = attend(qkv[:, :4], caches[:, 0], caches[:, 1], work, to_tables(spans, device), shape)
    expected = expect(qkv[:, :4], key, value, spans, shape)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_the_same_input_gives_the_same_bits(make_spans: SpanMaker, device: torch.device) -> None:
    spans = make_spans(np.random.default_rng(13), 16, CHAIN)
    shape = Shape(4, 2, 16, torch.float16)
    query = torch.randn(spans.num_rows, 4, 16, device=device).half()
    key, value = make_cache(spans, shape, device)
    work = make_work(spans, shape, device, max_rows=100)
    tables = to_tables(spans, device)
    results = []
    for _ in range(2):
        work.load(spans)
        results.append(attend(query, key, value, work, tables, shape))
    assert torch.equal(*results)


def test_offsets_beyond_32_bits(
    make_spans: SpanMaker, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_interpreted():
        # It would copy the whole cache onto itself.
        from triton.runtime.interpreter import GridExecutor

        monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *args: None)
    spans = make_spans(np.random.default_rng(14), 16, [([1], [(3, 1), (0, 2)])])
    shape = Shape(2, 1, 16, torch.float16)
    query = torch.randn(spans.num_rows, 2, 16, device=device).half()
    key, value = make_cache(spans, shape, device)
    page_stride = 16 * 2**20
    num_pages = 2**31 // page_stride + len(key)
    # Memory that is only mapped where it is written to.
    num_bytes = 2 * num_pages * page_stride
    if device.type == "cpu":
        memory = torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.float16)
    else:
        memory = torch.zeros(num_bytes // 2, dtype=torch.float16, device=device)
    size = (num_pages, *key.shape[1:])
    far_key = memory.as_strided(size, (page_stride, *key.stride()[1:]))
    far_value = memory.as_strided(size, far_key.stride(), page_stride // 2)
    far_key[-len(key) :] = key
    far_value[-len(key) :] = value
    tables = to_tables(spans, device)
    work = make_work(spans, shape, device, max_rows=100)
    work.load(spans)
    actual = attend(query, far_key, far_value, work, tables + num_pages - len(key), shape)
    expected = expect(query, key, value, spans, shape)
    torch.testing.assert_close(actual, expected, atol=4e-3, rtol=4e-3)


def test_work_for_other_tensors_is_refused(make_spans: SpanMaker, device: torch.device) -> None:
    spans = make_spans(np.random.default_rng(15), 16, CHAIN)
    shape = Shape(4, 2, 16)
    key, value = make_cache(spans, shape, device)
    work = make_work(spans, shape, device, max_rows=100)
    work.load(spans)
    query = torch.randn(spans.num_rows, 2, 16, device=device)
    with pytest.raises(ValueError, match="made for 4, 16, 2, float32, float32"):
        attend(query, key, value, work, to_tables(spans, device), shape)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(3, 2), (256, 1)])
def test_impossible_heads_are_refused(
    device: torch.device, num_heads: int, num_kv_heads: int
) -> None:
    with pytest.raises(ValueError, match=f"{num_heads} query heads over {num_kv_heads} KV heads"):
        DeviceWork(device, num_heads, num_kv_heads, 64, max_rows=1)


def test_graph_replays_the_next_step(make_spans: SpanMaker, device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("needs a GPU: the interpreter captures no graphs")
    rng = np.random.default_rng(16)
    shape = Shape(4, 2, 64, torch.float16)
    steps = [make_spans(rng, 16, STEPS[name]) for name in ("prompt", "large group", "one token")]
    num_rows = max(spans.num_rows for spans in steps)
    num_pages = max(int(spans.page_tables.max()) + 1 for spans in steps)
    query = torch.randn(num_rows, 4, 64, device=device).half()
    key, value = torch.randn(2, num_pages, 16, 2, 64, device=device).half()
    tables = torch.zeros(num_rows, num_pages, dtype=torch.int32, device=device)
    work = make_work(steps[0], shape, device, max_rows=num_rows)
    work.load(steps[0])
    attend(query, key, value, work, tables, shape)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(query, key, value, work, tables, shape)
    for spans in steps:
        given = to_tables(spans, device)
        tables[: given.shape[0], : given.shape[1]] = given
        work.load(spans)
        graph.replay()
        rows = slice(spans.num_rows)
        expected = expect(query[rows], key, value, spans, shape)
        torch.testing.assert_close(out[rows], expected, atol=4e-3, rtol=4e-3)
    assert work.generation == 0
