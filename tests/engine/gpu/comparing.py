"""Small models and prompts that share prefixes, run on the CPU's and on the GPU's runner."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from tests.engine.tiny import unwritten_cache
from trunkline.engine import grouping
from trunkline.engine.gpu_runner import GpuRunner
from trunkline.engine.graphs import MOST_ROWS
from trunkline.engine.kv_cache import allocate_kv_cache
from trunkline.engine.model.config import ModelConfig, config_from_hf
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.model.weights import assemble, random_tensors, tensor_shapes
from trunkline.engine.prompt_reading import Pooling, PromptReading
from trunkline.engine.runner import Runner
from trunkline.engine.scheduler import Scheduler
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.step_plan import TokenLogprobs
from trunkline.engine.step_runner import RunningStep, StepRunner

CPU = torch.device("cpu")
PAGE = 8
# The rows of a step: prompts are longer, so they come in chunks.
BATCH_TOKENS = 20
# Some of the outputs come to one of these.
STOP_TOKENS = frozenset(range(40, 50))
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "bos_token_id": None,
}
MEAN, FIRST, LAST = (PromptReading(pooling=pooling) for pooling in Pooling)
LOGPROBS = PromptReading(num_top_logprobs=2)
WINDOW = 10
MODELS: dict[str, Callable[[], ModelConfig]] = {
    "llama": lambda: config_from_hf(LlamaConfig(**SIZES)),
    "qwen2 with biases": lambda: config_from_hf(Qwen2Config(**SIZES)),
    "qwen3 with norms of q and k": lambda: config_from_hf(Qwen3Config(**SIZES)),
    "mistral with a window": lambda: config_from_hf(MistralConfig(**SIZES, sliding_window=WINDOW)),
    "all of these": lambda: config_from_hf(
        Qwen3Config(
            **SIZES,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=WINDOW,
            layer_types=["full_attention", "sliding_attention"],
        )
    ),
}


def one_layer() -> ModelConfig:
    return config_from_hf(LlamaConfig(**SIZES | {"num_hidden_layers": 1}))


def make_decoder(config: ModelConfig, device: torch.device) -> Decoder:
    tensors = random_tensors(tensor_shapes(config), torch.float32, CPU)
    return assemble(config, {name: tensor.to(device) for name, tensor in tensors.items()})


def make_sequences(
    sampling: list[SamplingParams], readings: tuple[PromptReading, ...] = ()
) -> list[Sequence]:
    """Prompts that share two pages, three of them, or nothing; two are equal."""
    rng = np.random.default_rng(7)
    stem, branch = rng.integers(4, 61, 2 * PAGE), rng.integers(4, 61, PAGE)
    tails = [rng.integers(4, 61, length) for length in (3, 9, 1, 5)]
    prompts = [
        [*stem, *tails[0]],
        [*stem, *branch, *tails[1]],
        [*stem, *branch, *tails[2]],
        [*stem, *branch, *tails[2]],
        [*tails[3]],
        [*stem, *tails[1], *tails[3]],
    ]
    sequences = []
    for i, prompt in enumerate(prompts):
        reads = i % len(readings) if readings else None
        sequences.append(
            Sequence(
                *(i, 0, np.array(prompt, np.int32), sampling[i % len(sampling)]),
                reading=None if reads is None else readings[reads],
                sharing_group=0 if reads is None else 1 + reads,
            )
        )
    return sequences


@dataclass(frozen=True)
class Run:
    """The results of a runner, and how they came about."""

    runner: StepRunner
    sequences: list[Sequence]
    num_preemptions: int
    group_depths: set[int]  # nodes that a row of some step was read below


def run(runner: StepRunner, config: SchedulerConfig, sequences: list[Sequence]) -> Run:
    scheduler = Scheduler(config, lambda _: 1)
    scheduler.add(sequences)
    in_flight: deque[RunningStep] = deque()
    depths: set[int] = set()
    while scheduler.has_work:
        plan = scheduler.schedule()
        if plan is not None:
            in_flight.append(runner.submit(plan, scheduler.sequences))
            rows = np.arange(plan.num_rows)
            is_group = ~plan.spans.causal
            starts, ends = plan.spans.row_start[is_group], plan.spans.row_end[is_group]
            depths.update(((rows >= starts[:, None]) & (rows < ends[:, None])).sum(0).tolist())
        if plan is None or len(in_flight) > runner.lookahead:
            scheduler.commit(in_flight.popleft().result())
        scheduler.check_invariants()
    return Run(runner, sequences, scheduler.num_preemptions, depths)


def compare(
    model: ModelConfig,
    config: SchedulerConfig,
    sampling: list[SamplingParams],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    readings: tuple[PromptReading, ...] = (),
    cuda_graph_rows: int = MOST_ROWS,
) -> tuple[Run, Run]:
    """Run on both; the CPU's and the GPU's.

    Prefixes of a page are read as groups, at both levels.
    """
    monkeypatch.setattr(grouping, "MERGE_COST_KEYS", 0)
    assert "TRITON_INTERPRET" not in os.environ, "the CPU's own kernels run first"
    cache = allocate_kv_cache(model, torch.float32, CPU, 64, PAGE)
    wanted = run(
        Runner(make_decoder(model, CPU), cache),
        SchedulerConfig(PAGE, 64, 64),
        make_sequences(sampling, readings),
    )
    if device == CPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    cache = unwritten_cache(model, config.num_pages, PAGE, device=device)
    runner = GpuRunner(
        make_decoder(model, device),
        cache,
        max_batch_tokens=config.max_batch_tokens,
        cuda_graph_rows=cuda_graph_rows,
    )
    found = run(runner, config, make_sequences(sampling, readings))
    assert [s.output for s in found.sequences] == [s.output for s in wanted.sequences]
    return wanted, found


def assert_like(a: TokenLogprobs, b: TokenLogprobs) -> None:
    assert a.top_ids == b.top_ids
    assert a.sampled == pytest.approx(b.sampled, abs=1e-4)
    assert a.top_logprobs == pytest.approx(b.top_logprobs, abs=1e-4)


def assert_same_record(mine: Sequence, other: Sequence) -> None:
    assert mine.record is not None
    assert other.record is not None
    np.testing.assert_allclose(mine.record.logprobs, other.record.logprobs, atol=1e-4)
    assert mine.record.top_ids.tolist() == other.record.top_ids.tolist()
    assert mine.reading is not None
    if mine.reading.pooling is not None:
        np.testing.assert_allclose(mine.record.embedding, other.record.embedding, atol=1e-4)
