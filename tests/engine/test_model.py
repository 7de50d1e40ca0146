"""The decoder's logits against transformers', on tiny random models, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.engine.tiny import unwritten_cache
from trunkline.engine.batch_inputs import build_inputs
from trunkline.engine.kv_cache import allocate_kv_cache, kv_bytes_per_token, num_pages_for
from trunkline.engine.model.config import UnsupportedModelError, config_from_hf
from trunkline.engine.model.weights import LoadedModel, assemble, tensor_shapes
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.step_plan import AttentionSpans, Int32Array, StepPlan

CPU = torch.device("cpu")
NUM_TOKENS = 90
PAGE_SIZE = 8

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}

MODELS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**TINY),
    "llama with biases": LlamaConfig(**TINY, attention_bias=True, mlp_bias=True),
    "llama tied": LlamaConfig(**TINY, tie_word_embeddings=True),
    "llama3 rope": LlamaConfig(**TINY, rope_parameters=LLAMA3),
    "yarn rope": LlamaConfig(**TINY, rope_parameters=YARN),
    "linear rope": LlamaConfig(**TINY, rope_parameters=LINEAR),
    "mistral": MistralConfig(**TINY, head_dim=16, sliding_window=None),
    "mistral with a window": MistralConfig(**TINY, head_dim=16, sliding_window=20),
    "qwen2": Qwen2Config(**TINY),
    "qwen2 with windows": Qwen2Config(
        **TINY, use_sliding_window=True, sliding_window=20, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**TINY, head_dim=16),
}


def chunk_plan(tokens: list[int], start: int, end: int, pages: Int32Array) -> StepPlan:
    """One sequence's positions [start, end); `pages` is its page table."""
    positions = np.arange(start, end, dtype=np.int32)
    pages = pages[: -(-end // PAGE_SIZE)]

    def one(value: int) -> Int32Array:
        return np.array([value], np.int32)

    return StepPlan(
        step=0,
        entry_start=one(start),
        entry_length=one(end - start),
        entry_sequence=one(0),
        entry_samples=np.array([True]),
        token_ids=np.array(tokens[start:end], np.int32),
        positions=positions,
        page_tables=pages[None],
        write_slots=pages[positions // PAGE_SIZE].astype(np.int64) * PAGE_SIZE
        + positions % PAGE_SIZE,
        spans=AttentionSpans(one(0), one(end - start), one(0), one(0), one(end), np.array([True])),
    )


def logits_in_chunks(model: LoadedModel, tokens: list[int], chunks: list[int]) -> torch.Tensor:
    """Logits of the last position of each chunk. [num_chunks, vocab_size]"""
    decoder = model.decoder
    pages = np.arange(len(tokens) // PAGE_SIZE + 1, dtype=np.int32)[::-1].copy()
    cache = unwritten_cache(decoder.config, len(pages), PAGE_SIZE, dtype=decoder.dtype)
    sequence = Sequence(0, 0, np.array(tokens, np.int32), SamplingParams(max_tokens=1))
    no_tokens = torch.zeros(1, dtype=torch.int64)
    rows = []
    for end, length in zip(np.cumsum(chunks).tolist(), chunks, strict=True):
        plan = chunk_plan(tokens, end - length, end, pages)
        inputs = build_inputs(plan, {0: sequence}, decoder.config, PAGE_SIZE, no_tokens)
        rows.append(decoder.logits(decoder.hidden(inputs.decoder, cache)))
    return torch.cat(rows)


def random_model(hf_config: PreTrainedConfig) -> tuple[LoadedModel, torch.nn.Module]:
    """The same random weights in our decoder and in transformers' model."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(hf_config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    config = config_from_hf(hf_config)
    tensors = dict(hf.state_dict())
    wanted = tensor_shapes(config)
    assert wanted.keys() | {"lm_head.weight"} == tensors.keys() | {"lm_head.weight"}
    return LoadedModel(assemble(config, tensors), config, Path()), hf


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunks", [[90], [70, 1, 1, 18], [7, 40, 1, 42]])
def test_logits_equal_transformers(name: str, chunks: list[int]) -> None:
    model, hf = random_model(MODELS[name])
    tokens = np.random.default_rng(0).integers(0, 97, NUM_TOKENS).tolist()
    with torch.no_grad():
        expected = hf(torch.tensor([tokens])).logits[0]
    out = logits_in_chunks(model, tokens, chunks)
    torch.testing.assert_close(out, expected[np.cumsum(chunks) - 1], atol=2e-4, rtol=1e-4)


def test_logits_of_a_model_from_a_folder(small: LoadedModel) -> None:
    hf = AutoModelForCausalLM.from_pretrained(small.folder, dtype=torch.float32)
    tokens = np.random.default_rng(1).integers(5, 40_000, 60).tolist()
    with torch.no_grad():
        expected = hf(torch.tensor([tokens])).logits[0]
    out = logits_in_chunks(small, tokens, [50, 1, 9])
    torch.testing.assert_close(out, expected[[49, 50, 59]], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; supported are llama"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type 'dynamic'"),
    ],
)
def test_what_is_not_supported_is_refused(changes: dict[str, Any], message: str) -> None:
    config = LlamaConfig(**TINY)
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(UnsupportedModelError, match=message):
        config_from_hf(config)


def test_the_caches_size() -> None:
    config = config_from_hf(LlamaConfig(**TINY))
    assert kv_bytes_per_token(config, torch.bfloat16) == 2 * 3 * 2 * 8 * 2
    assert num_pages_for(config, torch.bfloat16, 16, 16 * 192 * 10 + 5) == 10
    with pytest.raises(ValueError, match="a KV cache of 100 bytes cannot hold one page: 16 tokens"):
        num_pages_for(config, torch.bfloat16, 16, 100)
    cache = allocate_kv_cache(config, torch.bfloat16, CPU, 7, 16)
    assert (cache.num_pages, cache.page_size, len(cache.keys)) == (7, 16, 3)
