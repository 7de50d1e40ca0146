"""The engine's greedy output is that of transformers' `generate`, token by token, in float32.

Whatever the order of the prompts, the page size, the policy, the step's budget, and however short
the memory.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.tiny import unwritten_cache
from trunkline.engine.model.weights import LoadedModel
from trunkline.engine.planner import Sharing
from trunkline.engine.runner import Runner
from trunkline.engine.scheduler import Scheduler
from trunkline.engine.scheduler_config import Policy, SchedulerConfig
from trunkline.engine.sequence import SamplingParams, Sequence

MAX_TOKENS = 20
PASSAGE = (
    "The river was low that summer, and the ferryman sat on the bank and mended his nets. He had "
    "carried three kings across the water, he said, and not one of them had paid him. The fourth "
    "came on a Tuesday, in the rain, with a white horse and no servants."
)
QUESTIONS = [
    "Who sat on the bank?",
    "How many kings did he carry?",
    "What colour was the horse?",
    "On which day did the fourth king come?",
    "Did the kings pay?",
]


def make_prompts() -> list[str]:
    """40 prompts: shared prefixes at two levels, none at all, equal prompts, one of one word."""
    long = f"{PASSAGE} {PASSAGE}"
    prompts = [f"{long}\nQuestion: {question}\nAnswer:" for question in QUESTIONS]
    prompts += [f"{PASSAGE}\nQuestion: {question}\nAnswer:" for question in QUESTIONS]
    prompts += [f"{long}\nQuestion: {q}\nAnswer: I think" for q in QUESTIONS]
    prompts += [PASSAGE[: 20 + 13 * i] for i in range(12)]
    prompts += [f"{i} plus {i} is" for i in range(4)]
    prompts += [f"{i}. {PASSAGE[:215]}" for i in range(6)]  # almost a page of 64
    prompts += ["Hello", prompts[0], prompts[0]]
    return prompts


@pytest.fixture(scope="module")
def references(smollm2_folder: Path) -> list[tuple[list[int], list[int]]]:
    """Prompt and output tokens, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    found = []
    for prompt in make_prompts():
        ids = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=MAX_TOKENS, do_sample=False, pad_token_id=0)
        length = ids["input_ids"].shape[1]
        found.append((output[0, :length].tolist(), output[0, length:].tolist()))
    return found


def generate(
    model: LoadedModel,
    config: SchedulerConfig,
    prompts: list[list[int]],
    expected_output: int = MAX_TOKENS,
) -> tuple[list[list[int]], Scheduler]:
    """Output tokens of each prompt, and the scheduler that made them."""
    cache = unwritten_cache(model.config, config.num_pages, config.page_size)
    runner = Runner(model.decoder, cache)
    scheduler = Scheduler(config, lambda _: expected_output)
    eos = frozenset([model_eos(model)])
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, stop_token_ids=eos)
    sequences = [
        Sequence(i, 0, np.array(prompt, np.int32), sampling) for i, prompt in enumerate(prompts)
    ]
    scheduler.add(sequences)
    while (plan := scheduler.schedule()) is not None:
        scheduler.commit(runner.run(plan, scheduler.sequences))
        scheduler.check_invariants()
    return [sequence.output for sequence in sequences], scheduler


def model_eos(model: LoadedModel) -> int:
    return int(AutoTokenizer.from_pretrained(model.folder).eos_token_id)


@pytest.mark.parametrize("page_size", [8, 16, 64])
@pytest.mark.parametrize("order", ["given", "reversed", "shuffled"])
def test_any_order_and_page_size(
    smollm2: LoadedModel,
    references: list[tuple[list[int], list[int]]],
    page_size: int,
    order: str,
) -> None:
    wanted = list(references)
    if order == "reversed":
        wanted.reverse()
    elif order == "shuffled":
        random.Random(page_size).shuffle(wanted)
    config = SchedulerConfig(page_size, num_pages=16_384 // page_size, max_batch_tokens=256)
    outputs, scheduler = generate(smollm2, config, [prompt for prompt, _ in wanted])
    assert outputs == [output for _, output in wanted]
    logical = sum(len(prompt) for prompt, _ in wanted)
    assert scheduler.num_computed_prompt_tokens < 0.6 * logical


@pytest.mark.parametrize("policy", [Policy.PLANNED, Policy.FCFS])
@pytest.mark.parametrize("page_size", [8, 16, 64])
def test_under_preemption(
    smollm2: LoadedModel,
    references: list[tuple[list[int], list[int]]],
    page_size: int,
    policy: Policy,
) -> None:
    longest = max(len(prompt) for prompt, _ in references) + MAX_TOKENS
    num_pages = -(-longest // page_size) + 128 // page_size
    config = SchedulerConfig(page_size, num_pages, max_batch_tokens=64, policy=policy)
    # Outputs are expected to be short, so too many are admitted and memory runs out.
    prompts = [prompt for prompt, _ in references]
    outputs, scheduler = generate(smollm2, config, prompts, expected_output=1)
    assert outputs == [output for _, output in references]
    # The plan leaves room for a part of a page per sequence, which is enough for large pages.
    if policy is Policy.FCFS or page_size < MAX_TOKENS:
        assert scheduler.num_preemptions > 0


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize("sharing", list(Sharing))
def test_every_policy(
    smollm2: LoadedModel,
    references: list[tuple[list[int], list[int]]],
    policy: Policy,
    sharing: Sharing,
) -> None:
    config = SchedulerConfig(16, 512, 128, policy=policy, sharing=sharing)
    wanted = references[::2]
    outputs, _ = generate(smollm2, config, [prompt for prompt, _ in wanted])
    assert outputs == [output for _, output in wanted]
