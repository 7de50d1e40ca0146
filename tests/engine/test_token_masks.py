"""Sequences that follow a grammar, beside others that follow none, in an engine with a tiny model.

Its weights are random, so nothing but the masks makes an output fit its grammar.
"""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.tiny import tiny_decoder, unwritten_cache
from trunkline.engine.core import Engine
from trunkline.engine.grammar import Grammars
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.request import Line, Request
from trunkline.engine.requests.constraint import Constraint, ConstraintKind
from trunkline.engine.runner import Runner
from trunkline.engine.sampler import sample, sampling_batch
from trunkline.engine.scheduler_config import Policy, SchedulerConfig
from trunkline.engine.sequence import FinishReason, SamplingParams, Sequence
from trunkline.engine.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
PAGE = 8
END, OTHER_END, THINK, THINK_END = 0, 1, 2, 3
ENDS = frozenset([END, OTHER_END])
# Wider than the tokenizer's 260.
LOGITS = 275
CONFIG = SchedulerConfig(PAGE, num_pages=200, max_batch_tokens=64)


@pytest.fixture(scope="module")
def tokenizer(byte_folder: Path) -> Tokenizer:
    return Tokenizer(byte_folder)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, LOGITS)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return tiny_decoder(LOGITS)


class Bench:
    """Makes engines and requests."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, grammars: Grammars) -> None:
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.grammars = grammars

    def engine(self, config: SchedulerConfig = CONFIG, lookahead: int = 0) -> Engine:
        cache = unwritten_cache(self.decoder.config, config.num_pages, PAGE)
        return Engine(config, Runner(self.decoder, cache, lookahead), self.tokenizer, self.grammars)

    def regex(self, pattern: str) -> str:
        return self.grammars.of(Constraint(ConstraintKind.REGEX, pattern, "regex"))

    def run(
        self, sampling: list[SamplingParams], config: SchedulerConfig = CONFIG, lookahead: int = 0
    ) -> list[Sequence]:
        """Each a sequence of its own, with a prompt of its own."""
        sequences = [make_sequence(i, params) for i, params in enumerate(sampling)]
        engine = self.engine(config, lookahead)
        run_to_end(engine, sequences)
        return sequences

    def text(self, sequence: Sequence) -> str:
        return self.tokenizer.decode(sequence.output)


@pytest.fixture
def bench(decoder: Decoder, tokenizer: Tokenizer, grammars: Grammars) -> Bench:
    return Bench(decoder, tokenizer, grammars)


def make_sequence(number: int, params: SamplingParams, output: tuple[int, ...] = ()) -> Sequence:
    stem = np.random.default_rng(1).integers(4, 260, 24)
    own = np.random.default_rng(number).integers(4, 260, 1 + number % 5)
    prompt = np.concatenate([stem[: 8 * (number % 4)], own]).astype(np.int32)
    return Sequence(number, 0, prompt, params, output=list(output))


def run_to_end(engine: Engine, sequences: list[Sequence]) -> None:
    body: Any = None
    engine.add(
        Request(Line("batch", s.request_id, "x", "/v1/completions", {}), body, [s], 1, 1)
        for s in sequences
    )
    finished = []
    while engine.has_work:
        finished += engine.step()
        engine.scheduler.check_invariants()
    assert {request.sequences[0].request_id for request in finished} == {
        s.request_id for s in sequences
    }
    assert engine._token_masks is not None
    assert len(engine._token_masks._progress) == 0


def constrained(grammar: str, **settings: Any) -> SamplingParams:
    return SamplingParams(
        **{"max_tokens": 60, "temperature": 0.0, "stop_token_ids": ENDS, **settings},
        grammar=grammar,
    )


PATTERNS = ["(ab|cd){2,9}", "[0-9]{3}-[0-9]{4}", "(yes|no|perhaps)", "[a-z]{1,30}\\.", "é+x"]


def mixed(bench: Bench) -> tuple[list[SamplingParams], list[str | None]]:
    """Sequences of all kinds, and the pattern that each has to match."""
    sampling, patterns = [], []
    for i, pattern in enumerate(PATTERNS):
        grammar = bench.regex(pattern)
        sampling += [
            constrained(grammar),
            constrained(grammar, temperature=1.2, seed=i),
            SamplingParams(9 + i, temperature=0.9 * (i % 2), seed=i, stop_token_ids=ENDS),
            constrained(grammar, temperature=0.8, seed=9 + i, top_k=20, top_p=0.9),
            constrained(grammar, presence_penalty=1.5, repetition_penalty=1.3),
        ]
        patterns += [pattern, pattern, None, pattern, pattern]
    return sampling, patterns


def answers(sequences: list[Sequence]) -> list[tuple[list[int], FinishReason | None]]:
    return [(sequence.output, sequence.finish_reason) for sequence in sequences]


def test_outputs_follow_their_grammars(bench: Bench) -> None:
    sampling, patterns = mixed(bench)
    sequences = bench.run(sampling)
    num_complete = 0
    for sequence, pattern in zip(sequences, patterns, strict=True):
        assert sequence.failure is None
        if pattern is None:
            continue
        if sequence.finish_reason is FinishReason.STOP:
            assert sequence.output[-1] in ENDS
            assert re.fullmatch(pattern, bench.text(sequence)), bench.text(sequence)
            num_complete += 1
    assert num_complete > 15


@pytest.mark.parametrize("lookahead", [0, 1, 2])
@pytest.mark.parametrize("num_pages", [200, 20])
def test_neither_steps_ahead_nor_preemption_change_a_token(
    bench: Bench, lookahead: int, num_pages: int
) -> None:
    sampling, _ = mixed(bench)
    expected = answers(bench.run(sampling))
    config = SchedulerConfig(PAGE, num_pages, max_batch_tokens=64, policy=Policy.FCFS)
    sequences = bench.run(sampling, config, lookahead)
    assert answers(sequences) == expected
    num_preempted = sum(
        s.num_preemptions for s in sequences if s.sampling.grammar is not None and s.output
    )
    assert (num_preempted > 0) == (num_pages == 20)


def test_sequences_without_a_grammar_are_left_alone(bench: Bench) -> None:
    sampling, patterns = mixed(bench)
    free = [replace(params, grammar=None) for params in sampling]
    alone = bench.run(free)
    together = bench.run(sampling)
    for one, other, pattern in zip(alone, together, patterns, strict=True):
        assert (one.output == other.output) == (pattern is None)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_end_tokens_that_are_ignored_elsewhere(bench: Bench, temperature: float) -> None:
    grammar = bench.regex("abc")
    params = constrained(grammar, temperature=temperature, stop_token_ids=frozenset())
    roomy, exact, tight = bench.run(
        [params, replace(params, max_tokens=4), replace(params, max_tokens=3)]
    )
    for sequence in (roomy, exact):
        assert bench.text(sequence) == "abc"
        assert len(sequence.output) == 4
        assert sequence.finish_reason is FinishReason.STOP
    assert bench.text(tight) == "abc"
    assert tight.finish_reason is FinishReason.LENGTH


def test_min_tokens_hold_the_end_back_while_anything_else_is_allowed(bench: Bench) -> None:
    grammar = bench.regex("a{1,12}")
    bias = ((END, 100.0), (OTHER_END, 50.0))
    short, long, longest = bench.run(
        [
            constrained(grammar, logit_bias=bias),
            constrained(grammar, logit_bias=bias, min_tokens=7),
            constrained(grammar, logit_bias=bias, min_tokens=40, stop_token_ids=frozenset()),
        ]
    )
    for sequence, length in ((short, 1), (long, 7), (longest, 12)):
        assert bench.text(sequence) == "a" * length
        assert sequence.output[-1] == END
        assert sequence.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("lookahead", [0, 1])
def test_a_grammar_that_begins_after_a_token(bench: Bench, lookahead: int) -> None:
    """Before it the output is as free as without; the token itself comes by a bias here."""
    grammar = bench.regex("[0-9]{4}")
    settings: dict[str, Any] = {"temperature": 1.0, "stop_token_ids": frozenset(), "seed": 3}
    params = constrained(grammar, **settings, grammar_after_token=THINK_END, max_tokens=200)
    likely = replace(params, logit_bias=((THINK_END, 3.0), (END, 3.0)))
    free = replace(likely, grammar=None, grammar_after_token=None)
    never = replace(params, logit_bias=((THINK_END, -100.0),), max_tokens=20)
    sequence, reference, other = bench.run([likely] * 1 + [free, never], lookahead=lookahead)
    split = sequence.output.index(THINK_END) + 1
    assert split > 1
    assert re.fullmatch("[0-9]{4}", bench.tokenizer.decode(sequence.output[split:]))
    assert sequence.finish_reason is FinishReason.STOP
    assert len(sequence.output) == split + 5
    assert other.finish_reason is FinishReason.LENGTH
    assert not bench.text(other).isdigit()

    again = make_sequence(0, free)
    run_to_end(bench.engine(lookahead=lookahead), [again])
    assert again.output[:split] == sequence.output[:split]
    assert reference.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("lookahead", [0, 1])
def test_reasoning_before_a_grammar_may_be_left_out(bench: Bench, lookahead: int) -> None:
    """An output begins with the token that opens it, or with what the grammar is of."""
    settings: dict[str, Any] = {
        "stop_token_ids": frozenset(),
        "temperature": 1.0,
        "max_tokens": 200,
        "grammar_after_token": THINK_END,
        "grammar_unless_first_token": THINK,
    }
    digits = constrained(bench.regex("[0-9]{4}"), **settings)
    thinks = replace(digits, logit_bias=((THINK, 50.0), (THINK_END, 50.0)))
    plain = replace(digits, logit_bias=((THINK, -100.0), (THINK_END, 50.0)))
    nothing = constrained(bench.regex("(ab)?"), **settings, logit_bias=((END, 100.0),))
    sequences = bench.run([thinks, plain, nothing], lookahead=lookahead)
    assert all(s.finish_reason is FinishReason.STOP and s.failure is None for s in sequences)
    thought, answer, empty = (sequence.output for sequence in sequences)
    assert thought[0] == THINK
    split = thought.index(THINK_END) + 1
    assert re.fullmatch("[0-9]{4}", bench.tokenizer.decode(thought[split:]))
    assert re.fullmatch("[0-9]{4}", bench.tokenizer.decode(answer))
    assert len(answer) == 5
    assert empty == [END]


def test_end_tokens_before_the_grammar_begins_do_not_end(bench: Bench) -> None:
    params = constrained(
        bench.regex("[0-9]{4}"),
        stop_token_ids=frozenset(),
        grammar_after_token=THINK_END,
        logit_bias=((END, 100.0),),
        max_tokens=5,
    )
    (sequence,) = bench.run([params])
    assert sequence.output == [END] * 5
    assert sequence.finish_reason is FinishReason.LENGTH


def test_an_output_that_was_begun_elsewhere(bench: Bench, tokenizer: Tokenizer) -> None:
    """All its tokens are read before the first mask."""
    begun = tuple(int(token) for token in tokenizer.encode_chat("12"))
    whole = make_sequence(0, constrained(bench.regex("[0-9]{3}-x")), begun)
    thought = make_sequence(
        1,
        constrained(bench.regex("[0-9]{3}-x"), grammar_after_token=THINK_END),
        (7, 8, THINK_END, *begun),
    )
    run_to_end(bench.engine(), [whole, thought])
    for sequence in (whole, thought):
        assert re.fullmatch("12[0-9]-x", bench.text(sequence).split("</think>")[-1][-5:])
        assert sequence.finish_reason is FinishReason.STOP


def test_log_probabilities_are_the_models_own(bench: Bench) -> None:
    grammar = bench.regex("[0-9]{6}")
    (sequence,) = bench.run([constrained(grammar, num_top_logprobs=4)])
    for i, logprobs in enumerate(sequence.logprobs):
        free = make_sequence(0, SamplingParams(i + 1, temperature=0.0, num_top_logprobs=4))
        free.output = sequence.output[:i]
        run_to_end(bench.engine(), [free])
        assert logprobs.top_ids == free.logprobs[0].top_ids
        assert np.allclose(logprobs.top_logprobs, free.logprobs[0].top_logprobs, atol=1e-4)
        assert logprobs.sampled <= logprobs.top_logprobs[0]


def test_frequencies_are_those_of_what_is_allowed(bench: Bench) -> None:
    """Top-k and top-p choose among the allowed tokens only."""
    logits = torch.randn(1, LOGITS, generator=torch.Generator().manual_seed(0)).expand(3000, -1)
    tokens = [5, 40, 111, 200]
    words = np.zeros(-(-LOGITS // 32), np.uint32)
    for token in tokens:
        words[token // 32] |= np.uint32(1 << token % 32)
    masks = torch.from_numpy(words.view(np.int32)).expand(3000, -1).contiguous()
    for top_k, kept in ((0, 4), (3, 3)):
        sequences = [
            make_sequence(0, SamplingParams(9, seed=seed, top_k=top_k)) for seed in range(3000)
        ]
        positions = np.array([s.num_tokens for s in sequences])
        batch = sampling_batch(sequences, positions, LOGITS, CPU, np.arange(3000))
        found = torch.bincount(sample(logits, batch, masks), minlength=LOGITS) / 3000
        order = sorted(tokens, key=lambda t: float(logits[0, t]), reverse=True)[:kept]
        shares = logits[0, order].softmax(-1)
        assert set(found.nonzero().flatten().tolist()) == set(order)
        assert (found[order] - shares).abs().max() < 0.04


def test_a_sequence_that_cannot_go_on_fails_alone(bench: Bench) -> None:
    good = constrained(bench.regex("[0-9]{4}"))
    sequences = [
        make_sequence(0, good),
        make_sequence(1, good, output=(200, 201)),  # not digits
        make_sequence(2, constrained("start: nowhere")),  # never checked
        make_sequence(3, SamplingParams(5, temperature=0.0)),
    ]
    run_to_end(bench.engine(), sequences)
    assert all(sequence.finish_reason is not None for sequence in sequences)
    assert [sequence.failure is None for sequence in sequences] == [True, False, False, True]
    assert "doesn't satisfy the grammar" in (sequences[1].failure or "")
    assert "nowhere" in (sequences[2].failure or "")
    assert re.fullmatch("[0-9]{4}", bench.text(sequences[0]))


def test_an_engine_without_grammars_takes_none(bench: Bench) -> None:
    engine = bench.engine()
    engine._token_masks = None
    sequence = make_sequence(0, constrained(bench.regex("a")))
    body: Any = None
    with pytest.raises(ValueError, match="takes none"):
        engine.add([Request(Line("b", 1, "x", "/v1/completions", {}), body, [sequence], 1, 1)])
    assert not engine.has_work


def test_masks_are_made_while_the_model_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that is not ready before the model has run holds nothing up."""
    grammar = bench.regex("[0-9]{4}")
    model_ran = threading.Event()
    logits_of, matcher = Decoder.logits, Grammars.matcher

    def run_model(self: Decoder, *args: Any) -> Any:
        logits = logits_of(self, *args)
        model_ran.set()
        return logits

    def wait_for_model(self: Grammars, text: str) -> Any:
        assert model_ran.wait(120), "the model waited for the mask"
        return matcher(self, text)

    monkeypatch.setattr(Decoder, "logits", run_model)
    monkeypatch.setattr(Grammars, "matcher", wait_for_model)
    (sequence,) = bench.run([constrained(grammar)])
    assert re.fullmatch("[0-9]{4}", bench.text(sequence))


def test_a_dropped_sequence_leaves_nothing(bench: Bench) -> None:
    engine = bench.engine()
    body: Any = None
    sequences = [make_sequence(i, constrained(bench.regex("[a-z]{50}"))) for i in range(3)]
    engine.add(
        Request(Line("b", s.request_id, "x", "/v1/completions", {}), body, [s], 1, 1)
        for s in sequences
    )
    for _ in range(4):
        engine.step()
    assert engine._token_masks is not None
    assert len(engine._token_masks._progress) == 3
    engine.drop(lambda request: request.sequences[0].request_id > 0)
    assert len(engine._token_masks._progress) == 1
    while engine.has_work:
        engine.step()
    assert re.fullmatch("[a-z]{50}", bench.text(sequences[0]))


def test_a_sequence_that_is_withdrawn_leaves_nothing(bench: Bench) -> None:
    engine = bench.engine(lookahead=1)
    body: Any = None
    sequences = [make_sequence(i, constrained(bench.regex("[a-z]{50}"))) for i in range(2)]
    engine.add(
        Request(Line("b", s.request_id, "x", "/v1/completions", {}), body, [s], 1, 1)
        for s in sequences
    )
    for _ in range(4):
        engine.step()
    engine.withdraw(lambda request: request.sequences[0].request_id == 1)
    assert engine._token_masks is not None
    assert list(engine._token_masks._progress) == sequences[:1]
    while engine.has_work:
        engine.step()
    assert sequences[1].finish_reason is None
    assert re.fullmatch("[a-z]{50}", bench.text(sequences[0]))
