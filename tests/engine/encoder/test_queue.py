"""Batches of about one length, identical inputs once, the urgent first."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.engine.encoder.queue import (
    MAX_PADDING_SHARE,
    SMALL_BATCH_TOKENS,
    InputQueue,
    Waiting,
)
from trunkline.engine.encoder.sequence import EncoderSequence
from trunkline.engine.sequence import SamplingParams


def _sequence(
    tokens: list[int],
    *,
    request_id: int = 0,
    priority: int = 0,
    deadline: float = 0.0,
    pair_start: int | None = None,
) -> EncoderSequence:
    return EncoderSequence(
        *(request_id, 0, np.array(tokens, np.int32), SamplingParams(max_tokens=0)),
        deadline=deadline,
        priority=priority,
        pair_start=pair_start,
    )


def _of_length(num_tokens: int, number: int = 0) -> EncoderSequence:
    return _sequence([number] + [1] * (num_tokens - 1))


def _drain(queue: InputQueue) -> list[list[Waiting]]:
    batches = []
    while batch := queue.pop_batch():
        batches.append(batch)
    assert queue.num_sequences == 0
    return batches


def test_the_longest_first_within_the_budget() -> None:
    queue = InputQueue(max_batch_tokens=1000)
    queue.add(_of_length(n, n) for n in (100, 300, 310, 290, 90, 95))
    lengths = [[w.num_tokens for w in batch] for batch in _drain(queue)]
    assert lengths == [[310, 300, 290], [100, 95, 90]]


def test_an_input_over_the_budget_runs_alone() -> None:
    queue = InputQueue(max_batch_tokens=100)
    queue.add([_of_length(500, 1), _of_length(500, 2), _of_length(10, 3)])
    assert [len(batch) for batch in _drain(queue)] == [1, 1, 1]


def test_small_batches_may_be_padded() -> None:
    queue = InputQueue(max_batch_tokens=10_000)
    queue.add([_of_length(SMALL_BATCH_TOKENS // 2), _of_length(3)])
    assert [len(batch) for batch in _drain(queue)] == [2]
    queue.add([_of_length(SMALL_BATCH_TOKENS), _of_length(3)])
    assert [len(batch) for batch in _drain(queue)] == [1, 1]


def test_identical_inputs_run_once() -> None:
    queue = InputQueue(max_batch_tokens=100)
    sequences = [_sequence([1, 2, 3], request_id=i) for i in range(5)]
    pair = _sequence([1, 2, 3], pair_start=2)
    queue.add([*sequences[:3], pair])
    queue.add(sequences[3:])
    assert queue.num_sequences == 6
    (batch,) = _drain(queue)
    assert sorted(len(waiting.sequences) for waiting in batch) == [1, 5]
    # It is not waiting any more, so its like is a new input.
    queue.add([_sequence([1, 2, 3])])
    assert [len(batch) for batch in _drain(queue)] == [1]


def test_the_urgent_first() -> None:
    queue = InputQueue(max_batch_tokens=1)
    late = _sequence([1], deadline=20.0)
    soon = _sequence([2], deadline=10.0)
    important = _sequence([3], deadline=30.0, priority=5)
    queue.add([late, soon, important])
    order = [batch[0].sequences[0] for batch in _drain(queue)]
    assert order == [important, soon, late]


def test_an_urgent_one_does_not_wait_for_its_like() -> None:
    queue = InputQueue(max_batch_tokens=1)
    patient = _sequence([1])
    other = _sequence([2])
    urgent = _sequence([1], priority=1)
    queue.add([patient, other])
    queue.add([urgent])
    later = _sequence([1])
    queue.add([later])
    batches = [[waiting.sequences for waiting in batch] for batch in _drain(queue)]
    assert batches[0] == [[urgent, later]]
    assert sorted(len(batch) for batch in batches) == [1, 1, 1]


def test_dropping() -> None:
    queue = InputQueue(max_batch_tokens=100)
    queue.add([_sequence([1], request_id=1), _sequence([1], request_id=2)])
    queue.add([_sequence([2], request_id=1)])
    queue.drop({1})
    assert queue.num_sequences == 1
    # What was dropped takes no other with it.
    queue.add([_sequence([2], request_id=3)])
    (batch,) = _drain(queue)
    found = {waiting.input.tokens[0]: waiting.sequences[0].request_id for waiting in batch}
    assert found == {1: 2, 2: 3}


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60),
    budget=st.sampled_from([1, 64, 600, 5000]),
    priorities=st.lists(st.integers(0, 2), min_size=60, max_size=60),
)
def test_every_sequence_runs_exactly_once(
    lengths: list[int], budget: int, priorities: list[int]
) -> None:
    queue = InputQueue(budget)
    sequences = [
        _sequence([i % 7] * n, request_id=i, priority=priorities[i]) for i, n in enumerate(lengths)
    ]
    for sequence in sequences:
        queue.add([sequence])
    urgency = []
    ran: list[int] = []
    for batch in _drain(queue):
        assert len({waiting.key for waiting in batch if len(batch) == 1}) <= 1
        urgency.append(max(w.sequences[0].priority for w in batch))
        longest = max(waiting.num_tokens for waiting in batch)
        padded = longest * len(batch)
        padding = padded - sum(waiting.num_tokens for waiting in batch)
        if len(batch) > 1:
            assert padded <= budget
            assert padded <= SMALL_BATCH_TOKENS or padding <= MAX_PADDING_SHARE * padded
        ran += [s.request_id for waiting in batch for s in waiting.sequences]
    assert sorted(ran) == list(range(len(sequences)))
    assert urgency == sorted(urgency, reverse=True)


def test_little_is_padded() -> None:
    generator = np.random.default_rng(0)
    lengths = np.minimum(generator.lognormal(3.5, 0.8, 5000).astype(int) + 1, 512)
    queue = InputQueue(max_batch_tokens=8192)
    queue.add(
        _sequence(generator.integers(0, 30_000, n).tolist(), request_id=i)
        for i, n in enumerate(lengths)
    )
    batches = _drain(queue)
    padded = sum(max(w.num_tokens for w in batch) * len(batch) for batch in batches)
    assert padded < 1.07 * lengths.sum()
    assert len(batches) < 1.1 * lengths.sum() / 8192 + 10
