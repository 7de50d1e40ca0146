"""What the GPU runner is made of: staging, page tables, sizes of graphs, the largest step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from trunkline.engine import gpu_inputs
from trunkline.engine.device_page_tables import DevicePageTables
from trunkline.engine.gpu_memory import measure_kv_budget, run_largest_step
from trunkline.engine.gpu_runner import GpuRunner
from trunkline.engine.graphs import PARTS, Graphs, padded_sizes
from trunkline.engine.kv_cache import allocate_kv_cache
from trunkline.engine.model.config import config_from_hf
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.model.weights import assemble, random_tensors, tensor_shapes
from trunkline.engine.staging import ALIGNMENT, Staging


@pytest.mark.parametrize("most_rows", [1, 2, 7, 64, 100, 2048])
def test_rows_are_padded_by_a_small_part(most_rows: int) -> None:
    sizes = padded_sizes(most_rows)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most_rows
    for num_rows in range(1, most_rows + 1):
        padded = min(size for size in sizes if size >= num_rows)
        assert padded - num_rows < max(PARTS, num_rows / PARTS)


@dataclass
class Capture:
    """What stands for CUDA while a graph is recorded: refuses pinned memory as CUDA does."""

    mode: str | None = None  # of the capture underway
    thread: int = 0  # that captures
    is_invalid: bool = False

    @contextmanager
    def graph(
        self, graph: object, pool: object = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        del graph, pool
        self.mode, self.thread, self.is_invalid = capture_error_mode, threading.get_ident(), False
        yield
        self.mode = None
        if self.is_invalid:
            raise RuntimeError("operation failed due to a previous error during capture")

    def allocate_pinned(self) -> None:
        is_own = self.thread == threading.get_ident()
        if self.mode == "global" or (self.mode == "thread_local" and is_own):
            self.is_invalid = True
            raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Capture:
    found = Capture()
    empty: Callable[..., torch.Tensor] = torch.empty

    def spied_empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        if pin_memory:
            found.allocate_pinned()
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", spied_empty)
    monkeypatch.setattr(torch.cuda, "graph", found.graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return found


def test_another_thread_may_allocate_pinned_memory_while_a_graph_is_recorded(
    capture: Capture,
) -> None:
    graphs = Graphs(4)
    with ThreadPoolExecutor(1) as masks:

        def launch() -> None:
            assert capture.mode == "thread_local"
            masks.submit(torch.empty, 8, pin_memory=True).result()

        graphs.record(4, launch)
        assert capture.mode is None
        with pytest.raises(RuntimeError, match="when stream is capturing"):
            graphs.record(2, lambda: torch.empty(8, pin_memory=True))


def test_staged_arrays_arrive_and_the_first_ones_stay_where_they_are(
    device: torch.device,
) -> None:
    rng = np.random.default_rng(0)
    staging = Staging(device, 256)
    addresses = []
    for num_others in (0, 3, 1, 5):
        arrays = [
            rng.integers(0, 99, 7),
            rng.integers(0, 99, num_others).astype(np.int32),
            rng.random(num_others).astype(np.float32),
            np.empty(0, np.int64),
        ]
        sent = staging.send(arrays)
        for array, tensor in zip(arrays, sent, strict=True):
            assert tensor.cpu().numpy().dtype == array.dtype
            assert tensor.tolist() == array.tolist()
            assert tensor.data_ptr() % ALIGNMENT == 0 or not len(array)
        addresses.append(sent[0].data_ptr())
    assert len(set(addresses)) == 1
    assert staging.generation == 0
    (large,) = staging.send([np.arange(1000)])
    assert large.tolist() == list(range(1000))
    assert staging.generation == 1


def test_page_tables_are_sent_by_difference(device: torch.device) -> None:
    rng = np.random.default_rng(1)
    tables = DevicePageTables(device, num_slots=3, max_pages=2)
    wanted = np.zeros((20, 30), np.int32)
    for _ in range(40):
        slots = rng.permutation(20)[: rng.integers(1, 20)].astype(np.int32)
        num_pages = int(rng.integers(1, 30))
        pages = np.where(
            rng.random((len(slots), num_pages)) < 0.2,
            rng.integers(-1, 9, (len(slots), num_pages)),
            wanted[slots, :num_pages],
        ).astype(np.int32)
        positions, values = tables.changes(slots, pages)
        is_used = pages >= 0
        old = wanted[slots, :num_pages]
        assert len(positions) == np.count_nonzero(is_used & (pages != old))
        wanted[slots, :num_pages] = np.where(is_used, pages, old)
        tables.apply(torch.from_numpy(positions).to(device), torch.from_numpy(values).to(device))
        found = tables.tensor.cpu().numpy()
        rows, columns = min(20, len(found)), min(30, found.shape[1])
        assert (found[:rows, :columns] == wanted[:rows, :columns]).all()
        assert not wanted[rows:].any()
        assert not wanted[:, columns:].any()
    assert tables.generation > 0


@pytest.fixture(scope="module")
def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
    )


def make_decoder(config: LlamaConfig, dtype: torch.dtype, device: torch.device) -> Decoder:
    shape = config_from_hf(config)
    return assemble(shape, random_tensors(tensor_shapes(shape), dtype, device))


@pytest.mark.interpreter
@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.float8_e4m3fn])
def test_the_largest_step_leaves_the_cache_alone(
    kv_dtype: torch.dtype,
    config: LlamaConfig,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if device.type == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    decoder = make_decoder(config, torch.float16, device)
    cache = allocate_kv_cache(decoder.config, kv_dtype, device, 4, 16)
    runner = GpuRunner(decoder, cache, max_batch_tokens=5)
    run_largest_step(runner, 5)
    assert not cache.keys[0].float().any()
    assert not cache.values[0].float().any()


@pytest.mark.interpreter
def test_the_largest_step_has_the_logits_of_a_part_at_once(
    config: LlamaConfig, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gpu_inputs, "SAMPLED_AT_ONCE", 3)
    at_once: list[int] = []
    logits = Decoder.logits

    def spied(self: Decoder, hidden: torch.Tensor) -> torch.Tensor:
        at_once.append(len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(Decoder, "logits", spied)
    decoder = make_decoder(config, torch.float16, device)
    cache = allocate_kv_cache(decoder.config, torch.float16, device, 1, 16)
    run_largest_step(GpuRunner(decoder, cache, max_batch_tokens=8), 8)
    assert at_once == [3, 3, 2]


def test_graphs_of_no_rows_are_refused(config: LlamaConfig, device: torch.device) -> None:
    decoder = make_decoder(config, torch.float16, device)
    cache = allocate_kv_cache(decoder.config, torch.float16, device, 4, 16)
    with pytest.raises(ValueError, match="cuda_graph_rows is 0; at least 1 is needed"):
        GpuRunner(decoder, cache, max_batch_tokens=5, cuda_graph_rows=0)
    assert (
        GpuRunner(
            decoder, cache, max_batch_tokens=5, cuda_graphs=False, cuda_graph_rows=0
        ).recorded_rows
        == 0
    )


def test_heads_that_the_kernel_does_not_take_are_refused(
    config: LlamaConfig, device: torch.device
) -> None:
    wide = LlamaConfig(**{**config.to_dict(), "head_dim": 512})
    decoder = make_decoder(wide, torch.float16, device)
    cache = allocate_kv_cache(decoder.config, torch.float16, device, 4, 16)
    with pytest.raises(ValueError, match="heads of size 512"):
        GpuRunner(decoder, cache, max_batch_tokens=5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU whose memory is read")
def test_the_kv_budget_is_what_is_left(config: LlamaConfig, device: torch.device) -> None:
    decoder = make_decoder(config, torch.float16, device)
    budget = measure_kv_budget(decoder, torch.float16, 16, 512)
    free, total = torch.cuda.mem_get_info(device)
    assert 0.5 * free < budget < 0.93 * total
