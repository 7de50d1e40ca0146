"""Requests that go before all that waits: what they read, and what is left of them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from trunkline.engine import core
from trunkline.engine.core import Engine
from trunkline.engine.prompt_reading import Pooling, PromptReading
from trunkline.engine.request import Line, Request
from trunkline.engine.runner import DoneStep
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.step_plan import ReadResult, RowReads, StepPlan, StepResult

CONFIG = SchedulerConfig(page_size=8, num_pages=200, max_batch_tokens=16)
PROMPT = np.arange(100, 164, dtype=np.int32)


class PositionRunner:
    """Samples one and the same token; what is read of a row is its position, below zero."""

    def __init__(self, lookahead: int) -> None:
        self.lookahead = lookahead

    def submit(
        self, plan: StepPlan, sequences: Mapping[int, Sequence], masks: None = None
    ) -> DoneStep:
        slots = plan.entry_sequence[plan.entry_samples]
        tokens = np.full(len(slots), 7, np.int32)
        reads = None if plan.reads is None else self._read(plan, plan.reads)
        return DoneStep(StepResult(plan.step, slots, tokens, (None,) * len(slots), reads))

    def _read(self, plan: StepPlan, reads: RowReads) -> ReadResult:
        pools = zip(reads.pool_start.tolist(), reads.pool_end.tolist(), strict=True)
        sums = [[float(plan.positions[start:end].sum())] for start, end in pools]
        none = np.empty((len(reads.row), 0))
        return ReadResult(
            logprobs=-plan.positions[reads.row].astype(np.float32),
            top_ids=none.astype(np.int32),
            top_logprobs=none.astype(np.float32),
            pooled=np.array(sums, np.float32).reshape(-1, 1),
        )


@pytest.fixture(params=[0, 1])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """One that is too busy to plan anew for requests that go ahead."""
    monkeypatch.setattr(core, "MOST_TO_REPLAN", 0)
    tokenizer: Any = None
    runner: Any = PositionRunner(request.param)
    return Engine(CONFIG, runner, tokenizer)


def make_request(
    number: int, num_sequences: int, max_tokens: int = 3, reading: PromptReading | None = None
) -> Request:
    sampling = SamplingParams(max_tokens)
    sequences = [
        Sequence(number, choice, PROMPT, sampling, reading=reading)
        for choice in range(num_sequences)
    ]
    body: Any = None
    line = Line("b", number, "x", "/v1/completions", {})
    return Request(line, body, sequences, len(PROMPT), num_sequences)


def finish(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
        engine.scheduler.check_invariants()


@pytest.mark.parametrize("num_steps", range(1, 9))
def test_all_rows_are_read_when_the_rest_is_planned_anew(engine: Engine, num_steps: int) -> None:
    """As they are when a batch is dropped while they run: they share prefixes from then on."""
    logprobs = make_request(1, 2, reading=PromptReading(num_top_logprobs=0))
    mean = make_request(2, 2, reading=PromptReading(pooling=Pooling.MEAN))
    engine.add_ahead([logprobs])
    engine.add_ahead([mean])
    for _ in range(num_steps):
        engine.step()
    engine.drop(lambda _: False)
    finish(engine)
    for sequence in logprobs.sequences:
        assert sequence.record is not None
        assert sequence.record.logprobs[1:].tolist() == [-i for i in range(len(PROMPT) - 1)]
    for sequence in mean.sequences:
        assert sequence.record is not None
        assert sequence.record.num_pooled == len(PROMPT)
        assert sequence.record.embedding.tolist() == [np.arange(len(PROMPT)).mean()]


def test_nothing_is_kept_of_requests_that_are_through(engine: Engine) -> None:
    engine.add([make_request(0, 1, max_tokens=200)])
    ended = make_request(1, 1)
    withdrawn = make_request(2, 2, max_tokens=200)
    engine.add_ahead([ended])
    engine.add_ahead([withdrawn])
    for _ in range(12):
        engine.step()
    assert ended.num_unfinished == 0
    engine.withdraw(lambda request: request.line.line == 2)
    engine.step()
    engine.step()
    left = [weakref.ref(sequence) for sequence in (*ended.sequences, *withdrawn.sequences)]
    del ended, withdrawn
    gc.collect()
    assert engine.has_work
    assert [reference() for reference in left] == [None] * 3
    finish(engine)
