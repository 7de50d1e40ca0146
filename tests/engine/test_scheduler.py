"""The scheduler against a device that knows what every KV slot must hold.

The device keeps, for every slot of the cache, a fingerprint of the tokens up to the one whose KV
lies there. A row may only read slots whose fingerprint is that of its own prefix, so a wrong page,
a page freed too early, or a span too many fails at once. The sampled token is a function of the
prefix, so the output of every sequence is known beforehand, whatever the schedule. Where steps are
planned ahead of results, the device fills in the tokens that the host does not know yet.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import deque
from typing import Any

import numpy as np
import pytest

from tests.grids import slow
from trunkline.engine.ordering import Order
from trunkline.engine.planner import Grouping, Sharing
from trunkline.engine.prompt_reading import Pooling, PromptReading
from trunkline.engine.scheduler import Scheduler
from trunkline.engine.scheduler_config import Policy, SchedulerConfig
from trunkline.engine.sequence import FinishReason, SamplingParams, Sequence
from trunkline.engine.step_plan import PENDING_TOKEN, ReadResult, RowReads, StepPlan, StepResult

STOP_TOKEN = 7


def fingerprints(tokens: list[int]) -> list[int]:
    """One number for every prefix of `tokens`."""
    state, states = 17, []
    for token in tokens:
        state = (state * 1_000_003 + token + 1) % (1 << 61)
        states.append(state)
    return states


def next_token(fingerprint: int, stop_every: int) -> int:
    return STOP_TOKEN if stop_every and fingerprint % stop_every == 0 else fingerprint // 7 % 2


def logprob(fingerprint: int, token: int) -> float:
    """What the device says of `token` after a prefix."""
    return float((fingerprint + 31 * token) % 100_003)


def summand(fingerprint: int) -> float:
    """What the last token of a prefix adds to an embedding."""
    return float(fingerprint % 1009)


READINGS = (
    None,
    PromptReading(num_top_logprobs=0),
    PromptReading(num_top_logprobs=2),
    PromptReading(pooling=Pooling.MEAN),
    PromptReading(pooling=Pooling.LAST),
    PromptReading(pooling=Pooling.FIRST),
)


def check_reading(sequence: Sequence) -> None:
    """All that was to be read of the prompt has been, once."""
    reading, record = sequence.reading, sequence.record
    if reading is None:
        assert record is None
        return
    assert record is not None
    states = fingerprints(sequence.prompt.tolist())
    if reading.num_top_logprobs is not None:
        wanted = [logprob(s, t) for s, t in zip(states, sequence.prompt[1:].tolist(), strict=False)]
        assert np.isnan(record.logprobs[0])
        assert record.logprobs[1:].tolist() == wanted
        for i in range(reading.num_top_logprobs):
            assert record.top_ids[1:, i].tolist() == [i] * len(wanted)
            assert record.top_logprobs[1:, i].tolist() == [logprob(s, i) for s in states[:-1]]
    if reading.pooling is not None:
        rows = {
            Pooling.MEAN: states,
            Pooling.LAST: states[-1:],
            Pooling.FIRST: states[:1],
        }[reading.pooling]
        assert record.num_pooled == len(rows)
        assert record.embedding.tolist() == [np.float32(sum(map(summand, rows))) / len(rows)]


def expected_output(prompt: list[int], max_tokens: int, stop_every: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(next_token(fingerprints(tokens)[-1], stop_every))
        if tokens[-1] == STOP_TOKEN:
            break
    return tokens[len(prompt) :]


class FingerprintDevice:
    """Runs step plans over fingerprints instead of tensors."""

    def __init__(self, config: SchedulerConfig, stop_every: int = 0) -> None:
        self.config = config
        self.stop_every = stop_every
        self.cache = np.zeros(config.capacity_tokens, np.int64)
        self.sampled: dict[int, list[int]] = {}  # by slot, what its sequence sampled of late
        self.num_pending_rows = 0
        self.num_rows = 0
        self.num_keys_read = 0

    def run(self, plan: StepPlan, sequences: dict[int, Sequence]) -> StepResult:
        size = self.config.page_size
        assert 0 < plan.num_rows <= self.config.max_batch_tokens
        assert len(set(plan.write_slots.tolist())) == plan.num_rows, "two rows write one slot"
        self.num_rows += plan.num_rows
        states, row = [], 0
        for e in range(plan.num_entries):
            sequence = sequences[int(plan.entry_sequence[e])]
            start, length = int(plan.entry_start[e]), int(plan.entry_length[e])
            slot = int(plan.entry_sequence[e])
            known = [*sequence.prompt.tolist(), *sequence.output]
            if len(known) < start + length:  # in decode, with tokens that are pending
                known += self.sampled[slot][len(known) - start - length :]
            states.append(fingerprints(known))
            tokens = plan.token_ids[row : row + length].tolist()
            if tokens == [PENDING_TOKEN]:
                self.num_pending_rows += 1
                tokens = self.sampled[slot][-1:]
            assert tokens == known[start : start + length]
            assert plan.positions[row : row + length].tolist() == [*range(start, start + length)]
            assert plan.entry_samples[e] == (start + length == len(known))
            self.cache[plan.write_slots[row : row + length]] = states[e][start : start + length]
            row += length
        assert row == plan.num_rows

        entry_of_row = np.repeat(np.arange(plan.num_entries), plan.entry_length)
        seen = np.zeros((plan.num_rows, int(plan.positions.max()) + 1), np.int64)
        spans = plan.spans
        for s in range(spans.num_spans):
            first, last = int(spans.kv_start[s]), int(spans.kv_end[s])
            keys = np.arange(first, last)
            table = plan.page_tables[spans.entry[s]]
            values = self.cache[table[keys // size].astype(np.int64) * size + keys % size]
            self.num_keys_read += len(keys)
            assert first % size == 0
            for r in range(int(spans.row_start[s]), int(spans.row_end[s])):
                position = int(plan.positions[r])
                visible = np.minimum(last, position + 1) if spans.causal[s] else last
                assert visible <= position + 1
                wanted = states[entry_of_row[r]][first:visible]
                assert values[: visible - first].tolist() == wanted
                seen[r, first:visible] += 1
        wanted = np.arange(seen.shape[1]) <= plan.positions[:, None]
        assert (seen == wanted).all(), "a row misses a key or sees it twice"

        rows = np.concatenate(
            [
                states[e][int(plan.entry_start[e]) :][: int(plan.entry_length[e])]
                for e in range(plan.num_entries)
            ]
        ).tolist()
        sampling = np.flatnonzero(plan.entry_samples)
        tokens = [next_token(states[e][-1], self.stop_every) for e in sampling]
        for e, token in zip(sampling, tokens, strict=True):
            slot = int(plan.entry_sequence[e])
            self.sampled[slot] = [*self.sampled.get(slot, []), token][-4:]
        return StepResult(
            step=plan.step,
            sequence=plan.entry_sequence[sampling],
            token_ids=np.array(tokens, np.int32),
            logprobs=(None,) * len(tokens),
            reads=None if plan.reads is None else self.read(plan.reads, rows),
        )

    def read(self, reads: RowReads, rows: list[int]) -> ReadResult:
        states = [rows[row] for row in reads.row.tolist()]
        top_ids = np.tile(np.arange(reads.num_top, dtype=np.int32), (len(states), 1))
        pools = zip(reads.pool_start.tolist(), reads.pool_end.tolist(), strict=True)
        return ReadResult(
            logprobs=np.array(
                [logprob(s, t) for s, t in zip(states, reads.target.tolist(), strict=True)],
                np.float32,
            ),
            top_ids=top_ids,
            top_logprobs=np.array(
                [[logprob(s, i) for i in range(reads.num_top)] for s in states], np.float32
            ).reshape(len(states), reads.num_top),
            pooled=np.array(
                [[sum(map(summand, rows[first:last]))] for first, last in pools], np.float32
            ).reshape(-1, 1),
        )


def make_sequence(
    prompt: list[int],
    max_tokens: int,
    request_id: int = 0,
    reading: PromptReading | None = None,
    sharing_group: int = 0,
) -> Sequence:
    sampling = SamplingParams(max_tokens=max_tokens, stop_token_ids=frozenset([STOP_TOKEN]))
    return Sequence(
        *(request_id, 0, np.array(prompt, np.int32), sampling),
        reading=reading,
        sharing_group=sharing_group,
    )


def random_readings(rng: random.Random, count: int, group: int) -> list[tuple[Any, int]]:
    """A reading for each of `count` sequences, and the sharing group of those that read alike."""
    kinds = rng.sample(READINGS, k=rng.randint(1, 3)) if rng.random() < 0.5 else [None]
    readings = [rng.choice(kinds) for _ in range(count)]
    return [(r, 0 if r is None else group * len(READINGS) + READINGS.index(r)) for r in readings]


def step(
    scheduler: Scheduler, device: FingerprintDevice, in_flight: deque[StepResult], lookahead: int
) -> list[Sequence]:
    """One more step planned, if one can be; the oldest committed, if none can be or by its turn."""
    plan = scheduler.schedule()
    scheduler.check_invariants()
    if plan is not None:
        in_flight.append(device.run(plan, scheduler.sequences))
    else:
        assert in_flight, "there is work, so something can be done"
    return settle(scheduler, in_flight, lookahead if plan is not None else len(in_flight) - 1)


def settle(scheduler: Scheduler, in_flight: deque[StepResult], most: int = 0) -> list[Sequence]:
    """Commit the oldest steps, so that at most `most` stay in flight."""
    finished = []
    while len(in_flight) > most:
        finished += scheduler.commit(in_flight.popleft())
        scheduler.check_invariants()
    return finished


def run_to_end(
    scheduler: Scheduler, device: FingerprintDevice, lookahead: int = 0
) -> list[Sequence]:
    finished = []
    in_flight: deque[StepResult] = deque()
    while scheduler.has_work:
        finished += step(scheduler, device, in_flight, lookahead)
    assert scheduler.num_pages_held == 0
    return finished


def check_outputs(finished: list[Sequence], stop_every: int = 0) -> None:
    for sequence in finished:
        check_reading(sequence)
        wanted = expected_output(sequence.prompt.tolist(), sequence.sampling.max_tokens, stop_every)
        assert sequence.output == wanted
        stopped = wanted[-1] == STOP_TOKEN
        assert sequence.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)


def random_prompts(rng: random.Random, count: int, longest: int) -> list[list[int]]:
    """Prompts over two tokens that share prefixes at several levels."""
    prompts: list[list[int]] = []
    while len(prompts) < count:
        if prompts and rng.random() < 0.7:
            other = rng.choice(prompts)
            stem = other[: rng.randint(1, len(other))]
        else:
            stem = []
        tail = [rng.randint(0, 1) for _ in range(rng.randint(0, longest))]
        prompts.append((stem + tail)[:longest] or [1])
    return prompts


# The quick ones reach every branch that any of them does.
WORKLOADS = [
    pytest.param(
        *(seed, policy, sharing, lookahead),
        marks=() if seed < 5 and lookahead == seed % 3 else pytest.mark.slow,
    )
    for seed, policy, sharing, lookahead in itertools.product(range(15), Policy, Sharing, range(3))
]


@pytest.mark.parametrize(("seed", "policy", "sharing", "lookahead"), WORKLOADS)
def test_random_workloads_end_with_the_right_tokens(
    seed: int,
    policy: Policy,
    sharing: Sharing,
    lookahead: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(f"{seed}-{policy}-{sharing}")
    monkeypatch.setattr("trunkline.engine.grouping.MERGE_COST_KEYS", rng.choice([0, 1, 8]))
    size = rng.choice([1, 2, 4, 8])
    prompts = random_prompts(rng, rng.randint(1, 25), longest=40)
    max_tokens = [rng.randint(1, 15) for _ in prompts]
    largest = max(len(p) + m for p, m in zip(prompts, max_tokens, strict=True))
    config = SchedulerConfig(
        page_size=size,
        num_pages=-(-largest // size) + rng.choice([0, 1, 10, 100]),
        max_batch_tokens=rng.choice([1, 3, 16, 64]),
        policy=policy,
        sharing=sharing,
        order=rng.choice([None, *Order]),
        grouping=rng.choice(list(Grouping)),
    )
    stop_every = rng.choice([0, 5, 20])
    # Half of the runs predict outputs that are too short, so that memory runs out.
    short = rng.random() < 0.5
    scheduler = Scheduler(config, (lambda _: 1) if short else (lambda s: s.sampling.max_tokens))
    device = FingerprintDevice(config, stop_every)
    readings = random_readings(rng, len(prompts), group=1)
    scheduler.add(
        make_sequence(p, m, i, *reading)
        for i, (p, m, reading) in enumerate(zip(prompts, max_tokens, readings, strict=True))
    )
    finished = run_to_end(scheduler, device, lookahead)
    assert sorted(s.request_id for s in finished) == list(range(len(prompts)))
    check_outputs(finished, stop_every)
    assert scheduler.peak_kv_pages <= config.num_pages
    if policy is Policy.PLANNED and not short:
        assert scheduler.num_preemptions == 0


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("seed", [*range(10), *slow(*range(10, 40))])
def test_sequences_added_and_dropped_while_others_run(
    seed: int, lookahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr("trunkline.engine.grouping.MERGE_COST_KEYS", rng.choice([0, 8]))
    size = rng.choice([1, 2, 4])
    config = SchedulerConfig(
        page_size=size,
        num_pages=-(-40 // size) + rng.choice([0, 8, 60]),
        max_batch_tokens=rng.choice([2, 8, 32]),
        policy=rng.choice(list(Policy)),
        sharing=rng.choice(list(Sharing)),
        order=rng.choice([None, *Order]),
    )
    scheduler = Scheduler(config, rng.choice([lambda _: 1, lambda s: s.sampling.max_tokens]))
    device = FingerprintDevice(config)
    pool = random_prompts(rng, 30, longest=30)
    alive: set[int] = set()
    finished: list[Sequence] = []
    in_flight: deque[StepResult] = deque()

    def done(ended: list[Sequence]) -> None:
        nonlocal finished, alive
        finished += ended
        alive -= {s.request_id for s in ended}

    for request_id in range(60):
        action = rng.random()
        if action < 0.45:
            done(settle(scheduler, in_flight))
        if action < 0.35:
            readings = random_readings(rng, rng.randint(1, 6), group=request_id + 1)
            batch = [
                make_sequence(rng.choice(pool), rng.randint(1, 10), request_id * 100 + i, *reading)
                for i, reading in enumerate(readings)
            ]
            alive |= {s.request_id for s in batch}
            scheduler.add(batch)
        elif action < 0.45 and alive:
            victims = set(rng.sample(sorted(alive), k=rng.randint(1, len(alive))))
            take_out = rng.choice([scheduler.drop, scheduler.withdraw])
            take_out(lambda s, victims=victims: s.request_id in victims)
            alive -= victims
        elif action < 0.47 and alive:
            victim = rng.choice(sorted(alive))
            scheduler.withdraw(lambda s, victim=victim: s.request_id == victim)
            alive.remove(victim)
        elif action < 0.5 and scheduler.sequences:
            ended = scheduler.finish(rng.choice(sorted(scheduler.sequences)))
            assert ended.finish_reason is FinishReason.STOP
            alive.remove(ended.request_id)
        elif action < 0.6:
            group = (1000 + request_id) * len(READINGS)
            ahead = make_sequence(
                rng.choice(pool), rng.randint(1, 10), request_id * 100, rng.choice(READINGS), group
            )
            alive.add(ahead.request_id)
            scheduler.add_ahead([ahead])
        scheduler.check_invariants()
        for _ in range(rng.randint(0, 6)):
            if not scheduler.has_work:
                break
            done(step(scheduler, device, in_flight, lookahead))
        assert {s.request_id for s in scheduler.unfinished()} == alive
    done(settle(scheduler, in_flight))
    finished += run_to_end(scheduler, device, lookahead)
    check_outputs(finished)


def test_what_is_put_ahead_goes_first_and_keeps_its_order() -> None:
    config = SchedulerConfig(page_size=4, num_pages=40, max_batch_tokens=8)
    scheduler = Scheduler(config)
    device = FingerprintDevice(config)
    scheduler.add(make_sequence([1, 0] * 4, 4, i) for i in range(20))
    in_flight: deque[StepResult] = deque()
    step(scheduler, device, in_flight, 0)
    scheduler.add_ahead(make_sequence([0, 1] * 4, 2, 100 + i) for i in range(3))
    waiting = [s.request_id for s in scheduler.unfinished()[scheduler.num_running :]]
    assert waiting[:3] == [100, 101, 102]
    finished = run_to_end(scheduler, device)
    check_outputs(finished)
    ended = [s.request_id for s in finished]
    assert ended.index(102) < 6
    with pytest.raises(ValueError, match="the KV cache holds 160"):
        scheduler.add_ahead([make_sequence([1] * 100, 61)])


def tree_workload() -> list[list[int]]:
    """3 x 3 x 3 prompts that share 64 tokens, then 32, then 16."""
    rng = random.Random(5)

    def tokens(count: int) -> list[int]:
        return [rng.randint(0, 1) for _ in range(count)]

    prompts = []
    for _ in range(3):
        stem = tokens(64)
        for _ in range(3):
            branch = stem + tokens(32)
            for _ in range(3):
                prompts.append([*branch, *tokens(16), 2 + len(prompts)])
    rng.shuffle(prompts)
    return prompts


@pytest.mark.parametrize("max_batch_tokens", [16, 100, 4096])
def test_every_shared_token_is_computed_once(max_batch_tokens: int) -> None:
    config = SchedulerConfig(page_size=16, num_pages=400, max_batch_tokens=max_batch_tokens)
    scheduler = Scheduler(config)
    scheduler.add(make_sequence(p, 8, i) for i, p in enumerate(tree_workload()))
    finished = run_to_end(scheduler, FingerprintDevice(config))
    check_outputs(finished)
    unique = 3 * 64 + 9 * 32 + 27 * 17
    assert scheduler.num_computed_prompt_tokens == unique
    cached = sum(s.num_cached_tokens or 0 for s in finished)
    assert cached == 27 * (64 + 32 + 17) - unique


def test_followers_start_in_the_step_that_completes_their_prefix() -> None:
    config = SchedulerConfig(page_size=16, num_pages=400, max_batch_tokens=4096)
    scheduler = Scheduler(config)
    scheduler.add(make_sequence(p, 8, i) for i, p in enumerate(tree_workload()))
    run_to_end(scheduler, FingerprintDevice(config))
    # One step computes all prompts and samples each first token; 7 more decode the rest.
    assert scheduler.num_steps == 8


def test_shared_keys_are_read_once_per_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trunkline.engine.grouping.MERGE_COST_KEYS", 4)
    prompts = tree_workload()
    keys = {}
    for sharing in (Sharing.PLANNED, Sharing.OFF):
        config = SchedulerConfig(16, 4000, 4096, sharing=sharing)
        scheduler = Scheduler(config)
        scheduler.add(make_sequence(p, 8, i) for i, p in enumerate(prompts))
        device = FingerprintDevice(config)
        run_to_end(scheduler, device)
        keys[sharing] = device.num_keys_read
    assert keys[Sharing.PLANNED] < keys[Sharing.OFF] / 2


def test_a_static_batch_waits_for_its_longest_member() -> None:
    config = SchedulerConfig(
        page_size=4, num_pages=20, max_batch_tokens=64, policy=Policy.STATIC, sharing=Sharing.OFF
    )
    scheduler = Scheduler(config)
    lengths = [2, 60, 2, 60, 2, 2]
    scheduler.add(make_sequence([1, 0, i % 2], m, i) for i, m in enumerate(lengths))
    device = FingerprintDevice(config)
    started: list[int] = []
    while (plan := scheduler.schedule()) is not None:
        started.append(plan.num_entries)
        scheduler.commit(device.run(plan, scheduler.sequences))
    rises = sum(b > a for a, b in itertools.pairwise(started))
    assert rises >= 1, "the second batch starts when the first is through"
    assert scheduler.num_steps >= 120


def test_a_step_planned_ahead_decodes_what_is_still_on_the_device() -> None:
    config = SchedulerConfig(page_size=4, num_pages=100, max_batch_tokens=64)
    num_steps = []
    for lookahead in (0, 1):
        scheduler, device = Scheduler(config), FingerprintDevice(config)
        scheduler.add(make_sequence([1, 0, i], 6, i) for i in range(4))
        finished = run_to_end(scheduler, device, lookahead)
        check_outputs(finished)
        num_steps.append(scheduler.num_steps)
        assert device.num_pending_rows == lookahead * 4 * 5
    assert num_steps == [6, 6], "no step goes beyond max_tokens"


def test_a_sequence_with_penalties_is_not_planned_on_a_pending_token() -> None:
    config = SchedulerConfig(page_size=4, num_pages=100, max_batch_tokens=64)
    scheduler, device = Scheduler(config), FingerprintDevice(config)
    penalised = make_sequence([1, 0, 1], 6, 0)
    penalised.sampling = dataclasses.replace(penalised.sampling, presence_penalty=0.5)
    scheduler.add([penalised, make_sequence([0, 0, 1], 9, 1)])
    check_outputs(run_to_end(scheduler, device, lookahead=1))
    assert device.num_pending_rows == 2, "only when the other one is alone"


def test_what_a_stopped_sequence_gets_in_the_next_step_is_dropped() -> None:
    config = SchedulerConfig(page_size=4, num_pages=100, max_batch_tokens=64)
    scheduler, device = Scheduler(config), FingerprintDevice(config, stop_every=1)
    scheduler.add([make_sequence([1, 0, 1], 6)])
    in_flight: deque[StepResult] = deque()
    for _ in range(2):
        assert step(scheduler, device, in_flight, lookahead=2) == []
    first, second = in_flight
    (sequence,) = scheduler.commit(first)
    assert sequence.finish_reason is FinishReason.STOP
    assert scheduler.has_work, "a step is in flight"
    assert scheduler.num_pages_held == 0
    assert scheduler.receivers(second) == {}
    assert scheduler.commit(second) == []
    assert sequence.output == [STOP_TOKEN]
    assert not scheduler.has_work


def test_a_sequence_that_can_never_fit_is_refused_and_nothing_is_added() -> None:
    scheduler = Scheduler(SchedulerConfig(page_size=4, num_pages=4, max_batch_tokens=8))
    with pytest.raises(ValueError, match="may grow to 17 tokens; the KV cache holds 16"):
        scheduler.add([make_sequence([1], 2), make_sequence([1, 0], 15)])
    assert not scheduler.has_work
