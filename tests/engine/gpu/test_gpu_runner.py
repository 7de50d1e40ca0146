"""The GPU runner gives the tokens that the runner on the CPU gives, in float32.

Over chunks, shared prefixes that are read as groups, preemption, and with steps planned ahead.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from tests.engine.tiny import unwritten_cache
from trunkline.engine.gpu_runner import GpuRunner
from trunkline.engine.kv_cache import allocate_kv_cache
from trunkline.engine.model.config import ModelConfig, config_from_hf
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.model.weights import assemble, random_tensors, tensor_shapes
from trunkline.engine.prompt_reading import Pooling, PromptReading
from trunkline.engine.runner import Runner
from trunkline.engine.scheduler import Scheduler
from trunkline.engine.scheduler_config import Policy, SchedulerConfig
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.step_plan import TokenLogprobs
from trunkline.engine.step_runner import RunningStep, StepRunner

CPU = torch.device("cpu")
PAGE = 16
STOP_TOKEN = 3
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
MODELS: dict[str, Callable[[], ModelConfig]] = {
    "llama": lambda: config_from_hf(LlamaConfig(**SIZES)),
    "qwen2 with biases": lambda: config_from_hf(Qwen2Config(**SIZES)),
    "qwen3 with norms of q and k": lambda: config_from_hf(Qwen3Config(**SIZES)),
    "mistral with a window": lambda: config_from_hf(MistralConfig(**SIZES, sliding_window=24)),
}


def make_decoder(config: ModelConfig, device: torch.device) -> Decoder:
    tensors = random_tensors(tensor_shapes(config), torch.float32, CPU)
    return assemble(config, {name: tensor.to(device) for name, tensor in tensors.items()})


def make_sequences(
    sampling: list[SamplingParams], reading: PromptReading | None = None
) -> list[Sequence]:
    """Prompts that share 32 tokens, 48 of them, or nothing; two are equal."""
    rng = np.random.default_rng(7)
    stem, branch = rng.integers(4, 61, 32), rng.integers(4, 61, 16)
    tails = [rng.integers(4, 61, length) for length in (3, 9, 1, 5)]
    prompts = [
        [*stem, *tails[0]],
        [*stem, *branch, *tails[1]],
        [*stem, *branch, *tails[2]],
        [*stem, *branch, *tails[2]],
        [*tails[3]],
        [*stem, *tails[1], *tails[3]],
    ]
    return [
        Sequence(
            *(i, 0, np.array(prompt, np.int32), sampling[i % len(sampling)]),
            reading=reading,
            sharing_group=0 if reading is None else 1,
        )
        for i, prompt in enumerate(prompts)
    ]


def run(
    runner: StepRunner, config: SchedulerConfig, sequences: list[Sequence]
) -> tuple[list[list[int]], Scheduler]:
    """Output tokens of each sequence, and the scheduler that made them."""
    scheduler = Scheduler(config, lambda _: 1)
    scheduler.add(sequences)
    in_flight: deque[RunningStep] = deque()
    while scheduler.has_work:
        plan = scheduler.schedule()
        if plan is not None:
            in_flight.append(runner.submit(plan, scheduler.sequences))
        if plan is None or len(in_flight) > runner.lookahead:
            scheduler.commit(in_flight.popleft().result())
        scheduler.check_invariants()
    return [sequence.output for sequence in sequences], scheduler


def compare(
    model: ModelConfig,
    config: SchedulerConfig,
    sampling: list[SamplingParams],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    reading: PromptReading | None = None,
) -> tuple[list[Sequence], list[Sequence], Scheduler]:
    """Run on both; the CPU's sequences, the GPU's, and the GPU's scheduler."""
    assert "TRITON_INTERPRET" not in os.environ, "the CPU's own kernels run first"
    wanted = make_sequences(sampling, reading)
    cache = allocate_kv_cache(model, torch.float32, CPU, 64, PAGE)
    run(Runner(make_decoder(model, CPU), cache), SchedulerConfig(PAGE, 64, 64), wanted)

    if device == CPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    cache = unwritten_cache(model, config.num_pages, PAGE, device=device)
    runner = GpuRunner(make_decoder(model, device), cache, max_batch_tokens=config.max_batch_tokens)
    found = make_sequences(sampling, reading)
    _, scheduler = run(runner, config, found)
    assert [s.output for s in found] == [s.output for s in wanted]
    return wanted, found, scheduler


@pytest.mark.parametrize("name", MODELS)
def test_greedy_and_sampled_tokens_are_the_cpus(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = frozenset([STOP_TOKEN])
    sampling = [
        SamplingParams(8, temperature=0.0),
        SamplingParams(7, temperature=0.9, seed=5, stop_token_ids=stops),
        SamplingParams(8, temperature=1.3, top_k=12, top_p=0.8, seed=6),
    ]
    config = SchedulerConfig(PAGE, 40, max_batch_tokens=40)
    compare(MODELS[name](), config, sampling, device, monkeypatch)


def test_under_preemption(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = [SamplingParams(12, temperature=0.0), SamplingParams(9, temperature=0.7, seed=1)]
    config = SchedulerConfig(PAGE, 9, max_batch_tokens=40, policy=Policy.FCFS)
    _, _, scheduler = compare(MODELS["llama"](), config, sampling, device, monkeypatch)
    assert scheduler.num_preemptions > 0


@pytest.mark.parametrize("num_pages", [40, 9])
@pytest.mark.parametrize(
    "reading",
    [PromptReading(num_top_logprobs=2), *(PromptReading(pooling=pooling) for pooling in Pooling)],
)
def test_what_is_read_of_prompts_is_the_cpus(
    reading: PromptReading,
    num_pages: int,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampling = [SamplingParams(3, temperature=0.0)]
    config = SchedulerConfig(PAGE, num_pages, max_batch_tokens=20, policy=Policy.FCFS)
    model = MODELS["llama"]()
    wanted, found, _ = compare(model, config, sampling, device, monkeypatch, reading)
    for mine, other in zip(found, wanted, strict=True):
        assert mine.record is not None
        assert other.record is not None
        np.testing.assert_allclose(mine.record.logprobs, other.record.logprobs, atol=1e-4)
        assert mine.record.top_ids.tolist() == other.record.top_ids.tolist()
        if reading.pooling is not None:
            np.testing.assert_allclose(mine.record.embedding, other.record.embedding, atol=1e-4)


def test_edits_and_log_probabilities(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = [
        SamplingParams(5, temperature=0.0, logit_bias=((9, 3.0),), num_top_logprobs=2),
        SamplingParams(6, temperature=0.0, repetition_penalty=1.4, presence_penalty=0.3),
        SamplingParams(5, seed=3, min_tokens=3, stop_token_ids=frozenset(range(40))),
        SamplingParams(4, temperature=0.0, num_top_logprobs=0),
    ]
    config = SchedulerConfig(PAGE, 40, max_batch_tokens=64)
    wanted, found, _ = compare(MODELS["llama"](), config, sampling, device, monkeypatch)
    for a, b in zip(wanted, found, strict=True):
        assert len(a.logprobs) == len(b.logprobs)
        for x, y in zip(a.logprobs, b.logprobs, strict=True):
            assert_like(x, y)
    assert len(found[0].logprobs[0].top_ids) == 2


def assert_like(a: TokenLogprobs, b: TokenLogprobs) -> None:
    assert a.top_ids == b.top_ids
    assert a.sampled == pytest.approx(b.sampled, abs=1e-4)
    assert a.top_logprobs == pytest.approx(b.top_logprobs, abs=1e-4)


def test_tables_and_buffers_grow(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trunkline.engine.gpu_runner.FIRST_TABLE_TOKENS", PAGE)
    sampling = [SamplingParams(6, temperature=0.0)]
    config = SchedulerConfig(PAGE, 40, max_batch_tokens=40)
    compare(MODELS["llama"](), config, sampling, device, monkeypatch)
