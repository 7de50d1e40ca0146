"""The GPU runner gives the tokens that the runner on the CPU gives, in float32.

Over chunks, shared prefixes that are read as groups, preemption, and with steps planned ahead.
"""

from __future__ import annotations

import pytest
import torch

from tests.engine.gpu.comparing import (
    BATCH_TOKENS,
    FIRST,
    LAST,
    LOGPROBS,
    MEAN,
    MODELS,
    PAGE,
    STOP_TOKENS,
    assert_like,
    assert_same_record,
    compare,
    one_layer,
)
from trunkline.engine.gpu_runner import GpuRunner
from trunkline.engine.scheduler_config import Policy, SchedulerConfig
from trunkline.engine.sequence import FinishReason, SamplingParams

pytestmark = pytest.mark.interpreter


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "all of these" else pytest.mark.slow)
        for name in MODELS
    ],
)
def test_greedy_and_sampled_tokens_are_the_cpus(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = [
        SamplingParams(5, temperature=0.0),
        SamplingParams(6, temperature=0.9, seed=5, stop_token_ids=STOP_TOKENS),
        SamplingParams(4, temperature=1.3, top_k=12, top_p=0.8, seed=6),
    ]
    config = SchedulerConfig(PAGE, 40, BATCH_TOKENS)
    _, found = compare(MODELS[name](), config, sampling, device, monkeypatch)
    assert {s.finish_reason for s in found.sequences} == set(FinishReason)
    assert 2 in found.group_depths


def test_under_preemption(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = [SamplingParams(9, temperature=0.0), SamplingParams(7, temperature=0.7, seed=1)]
    config = SchedulerConfig(PAGE, 9, BATCH_TOKENS, policy=Policy.FCFS)
    _, found = compare(one_layer(), config, sampling, device, monkeypatch)
    assert found.num_preemptions > 0


READINGS = {
    "log-probabilities and means": (LOGPROBS, MEAN),
    "first and last rows": (FIRST, LAST),
    "log-probabilities": (LOGPROBS,),
    "means": (MEAN,),
    "first rows": (FIRST,),
    "last rows": (LAST,),
}


@pytest.mark.parametrize("is_short_of_memory", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if len(readings) == 2 else pytest.mark.slow)
        for name, readings in READINGS.items()
    ],
)
def test_what_is_read_of_prompts_is_the_cpus(
    name: str,
    is_short_of_memory: bool,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampling = [SamplingParams(6, temperature=0.0)]
    num_pages = 7 if is_short_of_memory else 40
    config = SchedulerConfig(PAGE, num_pages, BATCH_TOKENS, policy=Policy.FCFS)
    wanted, found = compare(one_layer(), config, sampling, device, monkeypatch, READINGS[name])
    assert (found.num_preemptions > 0) == is_short_of_memory
    for mine, other in zip(found.sequences, wanted.sequences, strict=True):
        assert_same_record(mine, other)


def test_edits_and_log_probabilities(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = [
        SamplingParams(3, temperature=0.0, logit_bias=((9, 3.0),), num_top_logprobs=2),
        SamplingParams(5, temperature=0.0, repetition_penalty=1.4, presence_penalty=0.3),
        SamplingParams(4, seed=3, min_tokens=3, stop_token_ids=frozenset(range(40))),
        SamplingParams(3, temperature=0.0, num_top_logprobs=0),
    ]
    config = SchedulerConfig(PAGE, 40, max_batch_tokens=64)
    wanted, found = compare(one_layer(), config, sampling, device, monkeypatch)
    for a, b in zip(wanted.sequences, found.sequences, strict=True):
        assert len(a.logprobs) == len(b.logprobs)
        for x, y in zip(a.logprobs, b.logprobs, strict=True):
            assert_like(x, y)
    assert len(found.sequences[0].logprobs[0].top_ids) == 2


def test_tables_and_buffers_grow(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trunkline.engine.gpu_runner.FIRST_TABLE_TOKENS", PAGE)
    sampling = [SamplingParams(3, temperature=0.0)]
    config = SchedulerConfig(PAGE, 40, BATCH_TOKENS)
    _, found = compare(one_layer(), config, sampling, device, monkeypatch)
    assert isinstance(found.runner, GpuRunner)
    assert found.runner._inputs.generation > 0
    (work,) = found.runner._works.values()
    assert work.generation > 0
