"""Prompt log-probabilities and embeddings are transformers', however prompts share their rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trunkline.engine.kv_cache import allocate_kv_cache
from trunkline.engine.model.weights import LoadedModel
from trunkline.engine.planner import Sharing
from trunkline.engine.prompt_reading import Pooling, PromptReading
from trunkline.engine.runner import Runner
from trunkline.engine.scheduler import Scheduler
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import SamplingParams, Sequence

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_TOP = 3
CONTEXT = (
    "The old mill by the river had not turned for thirty years. Its owner, a widow with four "
    "cats, let the upper floor to students, and the lower one to the pigeons."
)
CONTINUATIONS = [" She", " The students paid", " The pigeons did not pay.", "", " The cats"]


def make_texts() -> list[str]:
    texts = [CONTEXT + continuation for continuation in CONTINUATIONS]
    texts += [f"{CONTEXT} {CONTEXT}{continuation}" for continuation in CONTINUATIONS]
    return [*texts, "Pigeons", "A", CONTEXT[:40], CONTEXT]


class References:
    """What transformers says of each text."""

    def __init__(self, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.prompts = [np.array(tokenizer(text).input_ids, np.int32) for text in make_texts()]
        self.logprobs: list[np.ndarray] = []  # [tokens, vocabulary], of the token after each
        self.hidden: list[np.ndarray] = []  # [tokens, hidden]
        for prompt in self.prompts:
            ids = torch.from_numpy(prompt).long()[None]
            with torch.inference_mode():
                out = model(ids, output_hidden_states=True)
            self.logprobs.append(out.logits[0].log_softmax(-1).numpy())
            self.hidden.append(out.hidden_states[-1][0].numpy())


@pytest.fixture(scope="module")
def references(small_folder: Path) -> References:
    return References(small_folder)


def read(
    model: LoadedModel, config: SchedulerConfig, prompts: list[np.ndarray], reading: PromptReading
) -> tuple[list[Sequence], Scheduler]:
    cache = allocate_kv_cache(
        model.config, torch.float32, torch.device("cpu"), config.num_pages, config.page_size
    )
    runner, scheduler = Runner(model.decoder, cache), Scheduler(config)
    sampling = SamplingParams(max_tokens=2, temperature=0.0)
    sequences = [
        Sequence(i, 0, prompt, sampling, reading=reading, sharing_group=1)
        for i, prompt in enumerate(prompts)
    ]
    scheduler.add(sequences)
    while (plan := scheduler.schedule()) is not None:
        scheduler.commit(runner.run(plan, scheduler.sequences))
    return sequences, scheduler


@pytest.mark.parametrize("sharing", list(Sharing))
@pytest.mark.parametrize("max_batch_tokens", [17, 512])
def test_prompt_logprobs(
    small: LoadedModel, references: References, sharing: Sharing, max_batch_tokens: int
) -> None:
    config = SchedulerConfig(8, 512, max_batch_tokens, sharing=sharing)
    reading = PromptReading(num_top_logprobs=NUM_TOP)
    sequences, scheduler = read(small, config, references.prompts, reading)
    for sequence, wanted in zip(sequences, references.logprobs, strict=True):
        record, prompt = sequence.record, sequence.prompt
        assert record is not None
        rows = np.arange(len(prompt) - 1)
        assert np.isnan(record.logprobs[0])
        np.testing.assert_allclose(record.logprobs[1:], wanted[rows, prompt[1:]], atol=1e-4)
        best = -np.sort(-wanted[:-1], axis=1)[:, :NUM_TOP]
        np.testing.assert_allclose(record.top_logprobs[1:], best, atol=1e-4)
        of_top = np.take_along_axis(wanted[:-1], record.top_ids[1:].astype(np.int64), axis=1)
        np.testing.assert_allclose(of_top, best, atol=1e-4)
    logical = sum(map(len, references.prompts))
    if sharing is Sharing.PLANNED:
        assert scheduler.num_computed_prompt_tokens < 0.6 * logical
    else:
        assert scheduler.num_computed_prompt_tokens == logical


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("max_batch_tokens", [17, 512])
def test_embeddings(
    small: LoadedModel, references: References, pooling: Pooling, max_batch_tokens: int
) -> None:
    config = SchedulerConfig(8, 512, max_batch_tokens)
    reading = PromptReading(pooling=pooling)
    sequences, _ = read(small, config, references.prompts, reading)
    for sequence, hidden in zip(sequences, references.hidden, strict=True):
        assert sequence.record is not None
        wanted = {
            Pooling.MEAN: hidden.mean(0),
            Pooling.FIRST: hidden[0],
            Pooling.LAST: hidden[-1],
        }[pooling]
        np.testing.assert_allclose(sequence.record.embedding, wanted, atol=1e-4)
