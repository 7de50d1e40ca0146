"""Steps that are planned ahead of their results change no token.

For whatever ends a sequence, and for whatever is asked of the engine while steps are in flight.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.tiny import tiny_decoder, unwritten_cache
from trunkline.engine.core import Engine
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.planner import Sharing
from trunkline.engine.request import Line, Request
from trunkline.engine.runner import Runner
from trunkline.engine.scheduler_config import Policy, SchedulerConfig
from trunkline.engine.sequence import FinishReason, SamplingParams, Sequence

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
PAGE = 8
NUM_PAGES = 200
VOCABULARY = 40
NUM_REQUESTS = 14


class LetterTokenizer:
    """A letter for each token."""

    def decode(self, token_ids: Tokens[int]) -> str:
        return "".join(chr(ord("A") + token) for token in token_ids)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return tiny_decoder(VOCABULARY)


def make_engine(decoder: Decoder, lookahead: int, config: SchedulerConfig) -> Engine:
    cache = unwritten_cache(decoder.config, config.num_pages, PAGE)
    tokenizer: Any = LetterTokenizer()
    return Engine(config, Runner(decoder, cache, lookahead), tokenizer)


def make_requests(sampling: list[SamplingParams], first_id: int = 0) -> list[Request]:
    """Prompts of 1 to 40 tokens, most of which begin alike."""
    rng = np.random.default_rng(3 + first_id)
    stem = rng.integers(0, VOCABULARY, 30)
    requests = []
    for i in range(NUM_REQUESTS):
        own = rng.integers(0, VOCABULARY, 1 + i % 5)
        prompt = np.concatenate([stem[: 8 * (i % 4)], own]).astype(np.int32)
        sequence = Sequence(first_id + i, 0, prompt, sampling[i % len(sampling)])
        body: Any = None
        line = Line("batch", first_id + i, str(i), "/v1/completions", {})
        requests.append(Request(line, body, [sequence], len(prompt), 1))
    return requests


def run_to_end(engine: Engine) -> list[Request]:
    finished = []
    while engine.has_work:
        finished += engine.step()
        engine.scheduler.check_invariants()
    assert engine.scheduler.num_pages_held == 0
    return finished


def answers(requests: list[Request]) -> dict[int, tuple[list[int], FinishReason | None]]:
    sequences = [sequence for request in requests for sequence in request.sequences]
    return {s.request_id: (s.output, s.finish_reason) for s in sequences}


def run(
    decoder: Decoder, lookahead: int, sampling: list[SamplingParams], config: SchedulerConfig
) -> tuple[dict[int, tuple[list[int], FinishReason | None]], Engine]:
    engine = make_engine(decoder, lookahead, config)
    engine.add(make_requests(sampling))
    finished = run_to_end(engine)
    assert len(finished) == NUM_REQUESTS
    return answers(finished), engine


GREEDY = SamplingParams(12, temperature=0.0)
STOP_TOKENS = frozenset(range(0, VOCABULARY, 5))
SAMPLINGS = {
    "greedy": [GREEDY],
    "sampled": [
        SamplingParams(11, temperature=1.2, seed=4),
        SamplingParams(9, temperature=0.8, top_p=0.9, top_k=9, seed=5),
    ],
    "stop tokens": [
        SamplingParams(25, temperature=1.5, seed=6, stop_token_ids=STOP_TOKENS),
        SamplingParams(25, temperature=1.5, seed=7, stop_token_ids=STOP_TOKENS, min_tokens=4),
    ],
    "penalties": [
        SamplingParams(10, temperature=0.0, repetition_penalty=1.5, presence_penalty=0.7),
        GREEDY,
    ],
    "log-probabilities": [SamplingParams(6, temperature=0.0, num_top_logprobs=3), GREEDY],
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_tokens_do_not_depend_on_the_lookahead(decoder: Decoder, name: str) -> None:
    config = SchedulerConfig(PAGE, NUM_PAGES, max_batch_tokens=48)
    wanted, _ = run(decoder, 0, SAMPLINGS[name], config)
    found, _ = run(decoder, 1, SAMPLINGS[name], config)
    assert found == wanted
    assert len({tuple(output) for output, _ in wanted.values()}) > NUM_REQUESTS / 2
    if name == "stop tokens":
        assert {reason for _, reason in wanted.values()} >= {FinishReason.STOP}


def test_stop_strings(decoder: Decoder) -> None:
    config = SchedulerConfig(PAGE, NUM_PAGES, max_batch_tokens=48)
    free, _ = run(decoder, 0, [SamplingParams(12, temperature=1.0, seed=2)], config)
    text = LetterTokenizer().decode
    stops = tuple(text(output[3:5]) for output, _ in list(free.values())[::2])
    sampling = [SamplingParams(12, temperature=1.0, seed=2, stop_strings=stops)]
    wanted, _ = run(decoder, 0, sampling, config)
    found, _ = run(decoder, 1, sampling, config)
    assert found == wanted
    stopped = [output for output, reason in found.values() if reason is FinishReason.STOP]
    assert len(stopped) >= NUM_REQUESTS / 2
    assert all(text(output).endswith(stops) for output in stopped)


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize("sharing", list(Sharing))
def test_when_memory_is_short(decoder: Decoder, policy: Policy, sharing: Sharing) -> None:
    sampling = [SamplingParams(20, temperature=0.0), SamplingParams(25, temperature=1.0, seed=1)]
    roomy = SchedulerConfig(PAGE, NUM_PAGES, max_batch_tokens=48)
    tight = SchedulerConfig(PAGE, 12, max_batch_tokens=32, policy=policy, sharing=sharing)
    wanted, _ = run(decoder, 0, sampling, roomy)
    found, engine = run(decoder, 1, sampling, tight)
    assert found == wanted
    if policy is Policy.FCFS:
        assert engine.scheduler.num_preemptions > 0


def test_adding_and_dropping_while_a_step_is_in_flight(decoder: Decoder) -> None:
    config = SchedulerConfig(PAGE, NUM_PAGES, max_batch_tokens=48)
    sampling = SAMPLINGS["stop tokens"]
    alone: dict[int, tuple[list[int], FinishReason | None]] = {}
    for first_id in (0, 100):
        engine = make_engine(decoder, 0, config)
        engine.add(make_requests(sampling, first_id))
        alone |= answers(run_to_end(engine))

    engine = make_engine(decoder, 1, config)
    engine.add(make_requests(sampling))
    finished = [request for _ in range(4) for request in engine.step()]
    engine.add(make_requests(sampling, 100))
    finished += [request for _ in range(3) for request in engine.step()]
    before = set(answers(finished))
    engine.drop(lambda request: request.line.line % 3 == 0)
    finished += run_to_end(engine)
    found = answers(finished)
    assert found == {i: answer for i, answer in alone.items() if i in found}
    assert {i for i in alone if i % 3} <= set(found)
    assert not {i for i in found if i % 3 == 0} - before, "dropped ones do not come back"


def test_results_that_come_with_an_addition_are_kept(decoder: Decoder) -> None:
    config = SchedulerConfig(PAGE, NUM_PAGES, max_batch_tokens=4096)
    engine = make_engine(decoder, 1, config)
    engine.add(make_requests([SamplingParams(1, temperature=0.0)]))
    assert engine.step() == [], "the result is in flight"
    engine.add(make_requests([SamplingParams(1, temperature=0.0)], 100))
    assert engine.has_work
    assert {r.line.line for r in engine.step()} == set(range(NUM_REQUESTS))
    assert {r.line.line for r in run_to_end(engine)} == set(range(100, 100 + NUM_REQUESTS))
