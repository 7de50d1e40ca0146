"""Steps of more rows than are recorded, of many sampled rows, and with reads of prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.engine.gpu.comparing import (
    BATCH_TOKENS,
    FIRST,
    LOGPROBS,
    MEAN,
    PAGE,
    assert_like,
    assert_same_record,
    compare,
    one_layer,
)
from trunkline.engine import gpu_inputs, gpu_runner
from trunkline.engine.graphs import Graphs
from trunkline.engine.hidden_reading import ReadInputs, ReadTensors, read_hidden
from trunkline.engine.kv_cache import KVCache
from trunkline.engine.model.decoder import Decoder, DecoderInputs
from trunkline.engine.prompt_reading import PromptReading
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import SamplingParams
from trunkline.engine.staging import Array, Staging
from trunkline.kernels.dispatch import ResidentAttention

pytestmark = pytest.mark.interpreter


@dataclass
class Replayed:
    """In place of a CUDA graph: what was launched, launched again with what it read then."""

    launch: Callable[[], object]

    def replay(self) -> None:
        self.launch()


class ReplayingGraphs(Graphs):
    """Graphs without a GPU. A launch that reads what has moved since gives wrong tokens."""

    num_replays = 0

    def run(self, num_rows: int, launch: Callable[[], object]) -> None:
        type(self).num_replays += num_rows in self._graphs
        super().run(num_rows, launch)

    def record(self, num_rows: int, launch: Callable[[], object]) -> None:
        launch()
        self._graphs[num_rows] = Replayed(launch)  # type: ignore[assignment]


@pytest.fixture
def _graphs_without_a_gpu(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.type == "cuda":
        pytest.skip("a GPU records graphs of its own")
    monkeypatch.setattr(gpu_runner, "can_record", lambda _: True)
    monkeypatch.setattr(gpu_runner, "Graphs", ReplayingGraphs)
    monkeypatch.setattr(ReplayingGraphs, "num_replays", 0)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


GRAPH_ROWS = 8


# Attention writes nothing for rows that are padding; what is in the memory is multiplied all the
# same.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.usefixtures("_graphs_without_a_gpu")
@pytest.mark.parametrize("readings", [(), pytest.param((LOGPROBS, MEAN, FIRST), id="readings")])
def test_larger_steps_than_graphs_compute_only_wanted_rows_to_the_end(
    readings: tuple[PromptReading, ...], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[tuple[int, int | None, int]] = []
    hidden = Decoder.hidden

    def spied(self: Decoder, inputs: DecoderInputs, cache: KVCache) -> Tensor:
        found = hidden(self, inputs, cache)
        if isinstance(inputs.attention[None], ResidentAttention):
            wanted = None if inputs.wanted_rows is None else len(inputs.wanted_rows)
            computed.append((len(inputs.token_ids), wanted, len(found)))
        return found

    sampling = [
        SamplingParams(9, temperature=0.0, num_top_logprobs=1),
        SamplingParams(12, seed=6),
        SamplingParams(2, temperature=0.9, seed=5),
    ]
    config = SchedulerConfig(PAGE, 40, BATCH_TOKENS)
    arguments = (one_layer(), config, sampling, device, monkeypatch, readings)
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "hidden", spied)
        wanted, found = compare(*arguments, GRAPH_ROWS)
        monkeypatch.delenv("TRITON_INTERPRET")
    assert ReplayingGraphs.num_replays > 1
    large = [(rows, num_wanted) for rows, num_wanted, _ in computed if rows > GRAPH_ROWS]
    assert any(num_wanted is not None and num_wanted < rows for rows, num_wanted in large)
    assert all(num_wanted is not None for _, num_wanted in large) or readings
    for rows, num_wanted, num_found in computed:
        assert num_wanted is None or rows > GRAPH_ROWS
        assert num_found == (rows if num_wanted is None else num_wanted)

    # Graphs of all sizes: no step is larger.
    _, same = compare(*arguments, BATCH_TOKENS)
    for a, b, c in zip(wanted.sequences, found.sequences, same.sequences, strict=True):
        for x, y, z in zip(a.logprobs, b.logprobs, c.logprobs, strict=True):
            assert_like(x, y)
            assert_like(x, z)
        if readings:
            assert_same_record(a, b)
            assert_same_record(a, c)


def test_what_is_read_travels_with_the_steps_one_copy(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses: list[range] = []
    num_reads = 0
    send = Staging.send

    def spied_send(self: Staging, arrays: list[Array]) -> list[Tensor]:
        tensors = send(self, arrays)
        start = self._memory.data_ptr()
        addresses.append(range(start, start + self._memory.nbytes))
        return tensors

    def spied_read(decoder: Decoder, hidden: Tensor, inputs: ReadInputs) -> ReadTensors:
        nonlocal num_reads
        num_reads += len(inputs.rows)
        arrays = inputs.reads.row, inputs.reads.target
        for tensor, array in zip((inputs.rows, inputs.targets), arrays, strict=True):
            assert tensor.tolist() == array.tolist()
            assert not len(array) or tensor.data_ptr() in addresses[-1]
        return read_hidden(decoder, hidden, inputs)

    monkeypatch.setattr(Staging, "send", spied_send)
    monkeypatch.setattr(gpu_runner, "read_hidden", spied_read)
    config = SchedulerConfig(PAGE, 40, BATCH_TOKENS)
    sampling = [SamplingParams(4, temperature=0.0)]
    compare(one_layer(), config, sampling, device, monkeypatch, (LOGPROBS, MEAN))
    assert num_reads > 0


def test_sampled_rows_come_in_parts(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with edits and log-probabilities beside those without."""
    monkeypatch.setattr(gpu_inputs, "SAMPLED_AT_ONCE", 2)
    sampling = [
        SamplingParams(4, temperature=0.0, logit_bias=((9, 3.0),), num_top_logprobs=2),
        SamplingParams(5, temperature=0.8, seed=2),
        SamplingParams(5, temperature=0.0, repetition_penalty=1.4),
        SamplingParams(4, temperature=0.0, num_top_logprobs=0),
        SamplingParams(4, seed=3, min_tokens=3, stop_token_ids=frozenset(range(40))),
    ]
    config = SchedulerConfig(PAGE, 40, max_batch_tokens=64)
    wanted, found = compare(one_layer(), config, sampling, device, monkeypatch)
    for a, b in zip(wanted.sequences, found.sequences, strict=True):
        assert len(a.logprobs) == len(b.logprobs)
        for x, y in zip(a.logprobs, b.logprobs, strict=True):
            assert_like(x, y)
