"""How a step is cut for the GPU kernel, and what the table of tile shapes answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from trunkline.kernels.gpu import launch
from trunkline.kernels.gpu.device_work import (
    HEADER_SIZE,
    ITEM_SIZE,
    MIN_PART_KEYS,
    PART_MULTIPLE,
    DeviceWork,
)
from trunkline.kernels.gpu.tuning import FP8, SmallLaunch, all_rows, find_tuning
from trunkline.kernels.spans import SpanList

SpanMaker = Callable[..., SpanList]

# Chains in pages, members as (own computed tokens, new tokens).
STEP = [
    ([70, 40], [(3, 1), (0, 300), (9, 1), (100, 7)]),
    ([], [(5000, 1), (0, 65), (700, 1)]),
    ([300], [(n, 1) for n in range(40)]),
]


def read_items(work: DeviceWork) -> tuple[list[list[int]], list[int]]:
    """The items in the device's memory, and each one's kind."""
    num_kinds = len(work.tuning.kind_lines)
    ends = work.lists[6 : 6 + num_kinds].tolist()
    items = work.lists[HEADER_SIZE : HEADER_SIZE + ITEM_SIZE * ends[-1]].view(-1, ITEM_SIZE)
    counts = np.diff([0, *ends])
    return items.tolist(), np.repeat(np.arange(num_kinds), counts).tolist()


@pytest.mark.parametrize("ratio", [1, 3, 5, 8, 16])
def test_items_cover_every_row_and_key_once(
    make_spans: SpanMaker, device: torch.device, ratio: int
) -> None:
    spans = make_spans(np.random.default_rng(0), 16, STEP)
    work = DeviceWork(device, 2 * ratio, 2, 64, max_rows=spans.num_rows)
    work.load(spans)
    seen = np.zeros((spans.num_rows, int(spans.positions.max()) + 1), np.int64)
    for row_start, row_end, _, kv_start, kv_end, causal, *_ in read_items(work)[0]:
        for row in range(row_start, row_end):
            end = min(kv_end, spans.positions[row] + 1) if causal else kv_end
            seen[row, kv_start:end] += 1
    assert (seen == (np.arange(seen.shape[1]) <= spans.positions[:, None])).all()


@pytest.mark.parametrize("ratio", [1, 3, 5, 8, 16])
def test_tiles_are_of_the_smallest_kind_that_holds_them(
    make_spans: SpanMaker, device: torch.device, ratio: int
) -> None:
    spans = make_spans(np.random.default_rng(0), 16, STEP)
    work = DeviceWork(device, 2 * ratio, 2, 64, max_rows=spans.num_rows)
    work.load(spans)
    lines = work.tuning.kind_lines
    for item, kind in zip(*read_items(work), strict=True):
        num_lines = (item[1] - item[0]) * ratio
        assert num_lines <= lines[kind]
        assert kind == len(lines) - 1 or num_lines > lines[kind + 1] // ratio * ratio


def test_long_spans_are_split_where_blocks_begin(
    make_spans: SpanMaker, device: torch.device
) -> None:
    spans = make_spans(np.random.default_rng(0), 16, STEP)
    work = DeviceWork(device, 4, 2, 64, max_rows=spans.num_rows)
    work.load(spans)
    span_starts, span_ends = set(spans.kv_start.tolist()), set(spans.kv_end.tolist())
    inner = []
    for _, _, _, kv_start, kv_end, causal, first_partial, _ in read_items(work)[0]:
        if kv_start not in span_starts:
            assert kv_start % PART_MULTIPLE == 0
            assert first_partial >= 0
            inner.append(kv_start)
            # The last part of a causal tile ends with its last row.
            is_last = causal or kv_end in span_ends
            assert is_last or kv_end - kv_start > MIN_PART_KEYS - PART_MULTIPLE
    assert inner


def test_items_of_a_kind_are_listed_by_falling_cost(
    make_spans: SpanMaker, device: torch.device
) -> None:
    spans = make_spans(np.random.default_rng(0), 16, STEP)
    work = DeviceWork(device, 4, 2, 64, max_rows=spans.num_rows)
    work.load(spans)
    listed = [(kind, item[3] - item[4]) for item, kind in zip(*read_items(work), strict=True)]
    assert listed == sorted(listed)


def test_every_device_has_a_row_for_every_head_size_and_type() -> None:
    kinds = [
        (dtype, cache)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for cache in (dtype, FP8)
        if cache == dtype or dtype != torch.float32
    ]
    rows = [row for _, row in all_rows()]
    for architecture in ("sm_80", "sm_90", "gfx942"):
        for head_dim in range(1, 257):
            for dtype, cache in kinds:
                found = find_tuning(architecture, head_dim, dtype, cache)
                assert found in rows
                assert len(found.kind_lines) == len(found.kind_keys)
                assert list(found.kind_lines) == sorted(found.kind_lines, reverse=True)
                assert found.source in ("measured", "guess")


def test_launches_apart_do_every_kind_once() -> None:
    apart = [row for _, row in all_rows() if row.small is not None]
    assert apart
    for row in apart:
        large, small = row.launches
        assert (*large.kind_lines, *small.kind_lines) == row.kind_lines
        assert (large.first_kind, small.first_kind) == (0, len(large.kind_lines))
        assert large.kind_keys == row.kind_keys[:-1]
        assert len(small.kind_keys) == 1


def test_a_row_without_a_launch_apart_is_refused() -> None:
    with pytest.raises(ValueError, match=r"256.*no launch for its smallest tiles alone"):
        find_tuning("sm_90", 256, torch.bfloat16, torch.bfloat16, is_small_apart=True)


def test_launches_beside_each_other_wait_for_what_was_before(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The side stream begins after the main one, which goes on after the side stream."""
    done: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            done.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def stream(entered: Stream) -> Iterator[None]:
        done.append(f"in {entered.name}")
        yield
        done.append(f"out of {entered.name}")

    work = DeviceWork(device, 4, 2, 64, max_rows=1)
    monkeypatch.setattr(work, "_side", Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    work.tuning = dataclasses.replace(work.tuning, small=SmallLaunch(16, 4, 2, 1))
    large, small = work.tuning.launches
    work.launch_all(lambda each: done.append({large: "large", small: "small"}[each]))
    assert done == [
        *("side waits for main", "large", "in side", "small", "out of side"),
        "main waits for side",
    ]


def test_unlisted_head_sizes_take_the_next_larger_row() -> None:
    for smaller, larger in ((80, 128), (96, 128), (129, 256), (1, 64)):
        types = (torch.bfloat16, torch.bfloat16)
        assert find_tuning("sm_90", smaller, *types) is find_tuning("sm_90", larger, *types)


@pytest.mark.parametrize(
    ("head_dim", "dtype", "cache", "message"),
    [
        (257, torch.bfloat16, torch.bfloat16, "heads of size 257.*up to 256"),
        (64, torch.float64, torch.float64, "torch.float64.*takes bfloat16 and float16"),
        (64, torch.float32, FP8, "float8_e4m3fn.*float32 with float32"),
        (64, torch.float16, torch.bfloat16, "float16.*with a cache of that type"),
    ],
)
def test_what_there_is_no_row_for(
    head_dim: int, dtype: torch.dtype, cache: torch.dtype, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_tuning("sm_90", head_dim, dtype, cache)


def test_triton_takes_tensors_of_the_cpu_in_the_interpreter_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensor = torch.zeros(1)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert launch.triton_for(tensor)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not launch.triton_for(tensor)


def test_without_triton_no_tensor_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    launch._has_triton.cache_clear()
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    try:
        assert not launch.triton_for(torch.zeros(1))
    finally:
        launch._has_triton.cache_clear()
