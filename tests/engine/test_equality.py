"""The engine's greedy output is that of transformers, token by token, in float32.

Whatever the order of the prompts, the page size, the policy, the step's budget, and however short
the memory. With the small model, which changes its mind at the least difference, and with the real
one.
"""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.tiny import unwritten_cache
from tests.grids import slow
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


class Reference:
    """A model, the prompts in its tokens, and what transformers says to them."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        tokenizer = AutoTokenizer.from_pretrained(model.folder)
        self.prompts = [list(tokenizer(prompt).input_ids) for prompt in make_prompts()]
        self.eos = int(tokenizer.eos_token_id)
        self._hf = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
        self._known: dict[tuple[int, ...], list[int]] = {}

    def is_greedy(self, prompt: list[int], output: list[int]) -> bool:
        """Whether each token of `output` is the likeliest after all before it, up to its end."""
        if self._known.get(tuple(prompt)) == output:
            return True
        with torch.inference_mode():
            ids = torch.tensor([prompt + output[:-1]])
            logits = self._hf(ids, logits_to_keep=len(output)).logits[0]
        is_at_end = len(output) == MAX_TOKENS or output[-1] == self.eos
        found = is_at_end and self.eos not in output[:-1] and logits.argmax(-1).tolist() == output
        if found:
            self._known[tuple(prompt)] = output
        return found


@pytest.fixture(scope="module")
def of_small(small: LoadedModel) -> Reference:
    return Reference(small)


@pytest.fixture(scope="module")
def of_smollm2(smollm2: LoadedModel) -> Reference:
    return Reference(smollm2)


@pytest.fixture(params=["of_small", pytest.param("of_smollm2", marks=pytest.mark.slow)])
def reference(request: pytest.FixtureRequest) -> Reference:
    found: Reference = request.getfixturevalue(request.param)
    return found


def run(
    reference: Reference,
    config: SchedulerConfig,
    prompts: list[list[int]],
    expected_output: int = MAX_TOKENS,
) -> Scheduler:
    """The scheduler that has answered all prompts, each as transformers does."""
    model = reference.model
    runner = Runner(
        model.decoder, unwritten_cache(model.config, config.num_pages, config.page_size)
    )
    scheduler = Scheduler(config, lambda _: expected_output)
    eos = frozenset([reference.eos])
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, stop_token_ids=eos)
    sequences = [
        Sequence(i, 0, np.array(prompt, np.int32), sampling) for i, prompt in enumerate(prompts)
    ]
    scheduler.add(sequences)
    while (plan := scheduler.schedule()) is not None:
        scheduler.commit(runner.run(plan, scheduler.sequences))
        scheduler.check_invariants()
    outputs = [sequence.output for sequence in sequences]
    wrong = [p for p, o in zip(prompts, outputs, strict=True) if not reference.is_greedy(p, o)]
    assert wrong == []
    assert len(set(map(tuple, outputs))) > len(prompts) / 2
    return scheduler


def check_any_order(
    reference: Reference, order: str, page_size: int, prompts: list[list[int]]
) -> None:
    prompts = list(prompts)
    if order == "reversed":
        prompts.reverse()
    elif order == "shuffled":
        random.Random(page_size).shuffle(prompts)
    config = SchedulerConfig(page_size, num_pages=16_384 // page_size, max_batch_tokens=256)
    scheduler = run(reference, config, prompts)
    assert scheduler.num_computed_prompt_tokens < 0.6 * sum(map(len, prompts))


def test_the_default_model(of_smollm2: Reference) -> None:
    check_any_order(of_smollm2, "shuffled", 16, of_smollm2.prompts[::2])


ORDERS = [("given", 8), ("reversed", 16), ("shuffled", 64)]
OTHERS = set(itertools.product(["given", "reversed", "shuffled"], [8, 16, 64])) - set(ORDERS)


@pytest.mark.parametrize(
    ("order", "page_size"),
    [*ORDERS, *(pytest.param(*other, marks=pytest.mark.slow) for other in sorted(OTHERS))],
)
def test_any_order_and_page_size(reference: Reference, order: str, page_size: int) -> None:
    check_any_order(reference, order, page_size, reference.prompts)


@pytest.mark.parametrize("policy", [Policy.PLANNED, Policy.FCFS])
@pytest.mark.parametrize("page_size", [8, *slow(16, 64)])
def test_under_preemption(reference: Reference, page_size: int, policy: Policy) -> None:
    longest = max(map(len, reference.prompts)) + MAX_TOKENS
    num_pages = -(-longest // page_size) + 128 // page_size
    config = SchedulerConfig(page_size, num_pages, max_batch_tokens=64, policy=policy)
    # Outputs are expected to be short, so too many are admitted and memory runs out.
    scheduler = run(reference, config, reference.prompts, expected_output=1)
    # The plan leaves room for a part of a page per sequence, which is enough for large pages.
    if policy is Policy.FCFS or page_size < MAX_TOKENS:
        assert scheduler.num_preemptions > 0


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize("sharing", list(Sharing))
def test_every_policy(reference: Reference, policy: Policy, sharing: Sharing) -> None:
    config = SchedulerConfig(16, 512, 128, policy=policy, sharing=sharing)
    run(reference, config, reference.prompts[::2])
