"""Sequences with a grammar get the same tokens on the GPU runner as on the CPU's, in float32."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from trunkline.engine import gpu_inputs
from trunkline.engine.core import Engine
from trunkline.engine.gpu_runner import GpuRunner
from trunkline.engine.grammar import Grammars
from trunkline.engine.kv_cache import allocate_kv_cache
from trunkline.engine.model.config import config_from_hf
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.model.weights import assemble, random_tensors, tensor_shapes
from trunkline.engine.request import Line, Request
from trunkline.engine.requests.constraint import Constraint, ConstraintKind
from trunkline.engine.runner import Runner
from trunkline.engine.scheduler_config import Policy, SchedulerConfig
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.step_runner import StepRunner
from trunkline.engine.tokenizer import Tokenizer

pytestmark = pytest.mark.interpreter

CPU = torch.device("cpu")
PAGE = 8
LOGITS = 275
MODEL = config_from_hf(
    LlamaConfig(
        vocab_size=LOGITS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        eos_token_id=None,
        bos_token_id=None,
    )
)
PATTERN = "(ab|cd){2,4}"


def make_decoder(device: torch.device) -> Decoder:
    tensors = random_tensors(tensor_shapes(MODEL), torch.float32, CPU)
    return assemble(MODEL, {name: tensor.to(device) for name, tensor in tensors.items()})


def make_sequences(grammar: str, ends: frozenset[int]) -> list[Sequence]:
    """Of all kinds: with a grammar and without, greedy and random, with edits."""
    settings: list[dict[str, Any]] = [
        {"grammar": grammar},
        {"grammar": grammar, "temperature": 1.0, "seed": 1, "num_top_logprobs": 2},
        {"max_tokens": 4},
        {"grammar": grammar, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 2},
        {"max_tokens": 3, "temperature": 0.9, "seed": 3, "presence_penalty": 1.0},
        {"grammar": grammar, "min_tokens": 5, "logit_bias": ((0, 50.0),)},
    ]
    rng = np.random.default_rng(3)
    stem = rng.integers(4, 260, PAGE)
    return [
        Sequence(
            i,
            0,
            np.array([*stem[: PAGE * (i % 2)], *rng.integers(4, 260, 4 + i)], np.int32),
            SamplingParams(
                **{"max_tokens": 11, "temperature": 0.0, "stop_token_ids": ends, **params}
            ),
        )
        for i, params in enumerate(settings)
    ]


@pytest.mark.parametrize("sampled_at_once", [2048, 2])
def test_the_cpus_tokens_also_under_preemption(
    sampled_at_once: int, byte_folder: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_inputs, "SAMPLED_AT_ONCE", sampled_at_once)
    tokenizer = Tokenizer(byte_folder)
    grammars = Grammars(tokenizer, LOGITS)
    grammar = grammars.of(Constraint(ConstraintKind.REGEX, PATTERN, "regex"))

    def run(runner: StepRunner, config: SchedulerConfig) -> list[Sequence]:
        engine = Engine(config, runner, tokenizer, grammars)
        sequences = make_sequences(grammar, tokenizer.eos_token_ids)
        body: Any = None
        engine.add(
            Request(Line("b", s.request_id, "x", "/v1/completions", {}), body, [s], 1, 1)
            for s in sequences
        )
        while engine.has_work:
            engine.step()
            engine.scheduler.check_invariants()
        return sequences

    assert "TRITON_INTERPRET" not in os.environ, "the CPU's own kernels run first"
    cache = allocate_kv_cache(MODEL, torch.float32, CPU, 64, PAGE)
    expected = run(Runner(make_decoder(CPU), cache), SchedulerConfig(PAGE, 64, 64))

    if device == CPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    config = SchedulerConfig(PAGE, 4, 20, policy=Policy.FCFS)
    cache = allocate_kv_cache(MODEL, torch.float32, device, config.num_pages, PAGE)
    found = run(GpuRunner(make_decoder(device), cache, max_batch_tokens=20), config)

    assert [s.output for s in found] == [s.output for s in expected]
    assert [s.finish_reason for s in found] == [s.finish_reason for s in expected]
    for one, other in zip(found, expected, strict=True):
        for ours, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert ours.top_ids == theirs.top_ids
            assert ours.sampled == pytest.approx(theirs.sampled, abs=1e-4)
    for sequence in found:
        if sequence.sampling.grammar is not None:
            assert re.fullmatch(PATTERN, tokenizer.decode(sequence.output))
    assert len(found[5].output) == 7
    assert any(s.num_preemptions for s in found if s.sampling.grammar is not None)
