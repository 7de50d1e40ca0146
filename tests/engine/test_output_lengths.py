"""Output lengths are learned from finished requests."""

from __future__ import annotations

import random

import numpy as np

from trunkline.engine.output_lengths import MAX_TEMPLATES, MIN_SAMPLES, OutputLengths
from trunkline.engine.scheduler import Scheduler
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.step_plan import StepResult

STOP = 7


def make(prefix: int, request_id: int = 0, max_tokens: int = 400, stop: bool = True) -> Sequence:
    prompt = np.array([*([prefix] * 64), request_id % 1000], np.int32)
    sampling = SamplingParams(
        max_tokens=max_tokens, stop_token_ids=frozenset([STOP] if stop else [])
    )
    return Sequence(request_id, 0, prompt, sampling)


def test_a_quantile_by_template_once_there_are_enough() -> None:
    lengths = OutputLengths()
    assert lengths.expected(make(1)) == 400
    for i in range(MIN_SAMPLES):
        assert lengths.expected(make(1)) == 400
        lengths.observe(make(1, i), 10 + i)
    assert 20 <= lengths.expected(make(1)) <= 10 + MIN_SAMPLES
    assert lengths.expected(make(2)) == 400, "another template"
    assert lengths.expected(make(1, max_tokens=5)) == 5
    assert lengths.expected(make(1, stop=False)) == 400, "it cannot end before"


def test_templates_that_were_not_seen_for_long_are_forgotten() -> None:
    lengths = OutputLengths()
    for prefix in range(2 * MAX_TEMPLATES):
        lengths.observe(make(prefix + 10), 1)
        if prefix < MIN_SAMPLES or prefix % 1000 == 0:
            lengths.observe(make(1), 20)
    assert lengths.expected(make(1)) == 20, "it was seen again and again"
    assert len(lengths._templates) == MAX_TEMPLATES


def steps_with(lengths: OutputLengths | None) -> tuple[int, int]:
    """Steps and preemptions of 300 requests that stop long before their limit."""
    rng = random.Random(1)
    ends = [rng.randint(5, 40) for _ in range(300)]
    config = SchedulerConfig(page_size=8, num_pages=800, max_batch_tokens=512)
    scheduler = Scheduler(config, *([lengths.expected] if lengths else []))
    scheduler.add([make(1, i) for i in range(300)])
    while (plan := scheduler.schedule()) is not None:
        scheduler.check_invariants()
        slots = plan.entry_sequence[plan.entry_samples]
        running = [scheduler.sequences[slot] for slot in slots.tolist()]
        tokens = [STOP if len(s.output) + 1 == ends[s.request_id] else 1 for s in running]
        result = StepResult(plan.step, slots, np.array(tokens, np.int32), (None,) * len(tokens))
        for sequence in scheduler.commit(result):
            assert len(sequence.output) == ends[sequence.request_id]
            if lengths is not None:
                lengths.observe(sequence, len(sequence.output))
    return scheduler.num_steps, scheduler.num_preemptions


def test_what_was_learned_fills_the_memory() -> None:
    bounded, _ = steps_with(None)
    learned, preemptions = steps_with(OutputLengths())
    assert learned < bounded / 1.5
    assert preemptions < 30
