"""Pause, priority, idempotency, reading along, pace."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from trunkline.store.errors import IdempotencyConflict, IllegalTransition
from trunkline.store.records import Held, Idempotency, NewBatch, Outcome
from trunkline.store.schema import batches
from trunkline.store.states import BatchStatus

NOW = 1_000_000
MODEL = "tiny"


def _new(file_id: str, key: str | None = None, sha256: str = "a", priority: int = 0) -> NewBatch:
    idempotency = None if key is None else Idempotency(key, sha256)
    return NewBatch(
        *("/v1/completions", file_id, "24h", NOW + 9, None, None),
        priority=priority,
        idempotency=idempotency,
    )


def _failure(line: int, code: str, status_code: int = 400) -> Outcome:
    error = {"message": f"wrong {code}", "type": "invalid_request_error", "param": None}
    return Outcome(line, status_code, json.dumps({"error": {**error, "code": code}}))


def test_a_paused_batch_is_claimed_by_nobody(store: Any) -> None:
    batch = store.accepted()
    assert store.batches.pause(batch.id, NOW + 1).paused_at == NOW + 1
    assert store.batches.pause(batch.id, NOW + 2).paused_at == NOW + 1
    assert store.work.claim("engine", [MODEL], NOW + 2, 60) is None
    assert store.batches.resume(batch.id).paused_at is None
    assert store.batches.resume(batch.id).paused_at is None
    assert store.work.claim("engine", [MODEL], NOW + 2, 60).batch_id == batch.id


def test_the_holder_of_a_paused_batch_hears_of_it_and_loses_nothing(store: Any) -> None:
    claim = store.claimed(num_lines=3)
    store.batches.pause(claim.batch_id, NOW + 1)
    assert store.work.heartbeat("engine", {}, [claim], NOW + 2, 60) == {
        claim.batch_id: Held(BatchStatus.IN_PROGRESS, is_paused=True)
    }
    assert store.work.commit(claim, [Outcome(1, 200, "{}")], NOW + 3) == 1
    store.work.release(claim)
    store.batches.resume(claim.batch_id)
    again = store.work.claim("engine", [MODEL], NOW + 4, 60)
    assert [row.line for row in store.work.unfinished(again)] == [2, 3]


@pytest.mark.parametrize("status", list(BatchStatus))
def test_what_is_about_to_end_is_not_paused(store: Any, status: BatchStatus) -> None:
    batch = store.accepted()
    with store.database.write() as connection:
        connection.execute(batches.update().values(status=status))
    changes = {
        "pause": lambda: store.batches.pause(batch.id, NOW),
        "resume": lambda: store.batches.resume(batch.id),
        "change the priority of": lambda: store.batches.set_priority(batch.id, 5),
    }
    for action, change in changes.items():
        if status in {BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS}:
            assert change().status is status
        else:
            with pytest.raises(IllegalTransition) as caught:
                change()
            assert (caught.value.action, caught.value.status) == (action, status)


def test_a_paused_batch_expires_and_can_be_cancelled(store: Any) -> None:
    first, second = store.accepted(), store.accepted()
    for batch in (first, second):
        store.batches.pause(batch.id, NOW)
    assert store.batches.cancel(first.id, NOW).status is BatchStatus.CANCELLING
    store.closing.expire_due(second.expires_at)
    assert store.batches.get(second.id).status is BatchStatus.FINALIZING


def test_a_higher_priority_is_claimed_first(store: Any) -> None:
    ids = [store.accepted().id for _ in range(4)]
    store.batches.set_priority(ids[2], 5)
    store.batches.set_priority(ids[0], -1)
    claimed = [store.work.claim("engine", [MODEL], NOW, 60) for _ in range(4)]
    assert [claim.batch_id for claim in claimed] == [ids[2], ids[1], ids[3], ids[0]]
    assert [claim.priority for claim in claimed] == [5, 0, 0, -1]


def test_one_key_creates_one_batch(store: Any) -> None:
    file = store.file()
    first = store.batches.create(_new(file.id, "k"), NOW)
    assert store.batches.create(_new(file.id, "k"), NOW + 1) == first
    with pytest.raises(IdempotencyConflict):
        store.batches.create(_new(file.id, "k", sha256="b"), NOW + 1)
    other = store.batches.create(_new(file.id, "l"), NOW + 1)
    assert {batch.id for batch in store.batches.list().items} == {first.id, other.id}


def test_one_key_at_the_same_time_creates_one_batch(store: Any) -> None:
    file = store.file()
    made: list[str] = []
    barrier = threading.Barrier(8)

    def create() -> None:
        barrier.wait()
        made.append(store.batches.create(_new(file.id, "k"), NOW).id)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1


def test_reading_along_sees_each_outcome_once(store: Any) -> None:
    claim = store.claimed(num_lines=6)
    seen: list[int] = []
    after = 0
    for lines in ([5], [2, 6], [1]):
        store.work.commit(claim, [Outcome(line, 200, "{}") for line in lines], NOW)
        until = store.outcomes.last_position(claim.batch_id)
        rows = list(store.outcomes.by_position(claim.batch_id, after, until, is_success=True))
        seen += [row.outcome.line for row in rows]
        after = until
    store.batches.cancel(claim.batch_id, NOW)
    store.work.release(claim)
    closing = store.closing.claim("server", NOW, 60)
    store.closing.close_unfinished(closing, NOW)
    until = store.outcomes.last_position(claim.batch_id)
    rows = list(store.outcomes.by_position(claim.batch_id, after, until, is_success=False))
    assert (seen, [row.outcome.line for row in rows], until) == ([5, 2, 6, 1], [3, 4], 6)
    assert list(store.outcomes.by_position(claim.batch_id, 0, 3, is_success=False)) == []


def test_pace(store: Any) -> None:
    claim = store.claimed(num_lines=5)
    answered = [Outcome(i, 200, "{}", num_prompt_tokens=10, num_output_tokens=2) for i in (1, 2)]
    store.work.commit(claim, answered, NOW + 1)
    store.work.commit(claim, [_failure(3, "a")], NOW + 7)
    store.work.commit(claim, [Outcome(4, 200, "{}", num_cached_tokens=3)], NOW + 9)
    found = store.progress.buckets(claim.batch_id, NOW, NOW + 9, max_buckets=5)
    shown = [
        (b.start - NOW, b.seconds, b.num_completed, b.num_failed, b.num_prompt_tokens)
        for b in found
    ]
    assert shown == [(0, 2, 2, 0, 20), (6, 2, 0, 1, 0), (8, 2, 1, 0, 0)]
    assert [b.num_output_tokens for b in found] == [4, 0, 0]
    assert [b.num_cached_tokens for b in found] == [0, 0, 3]


def test_errors_are_grouped_by_what_went_wrong(store: Any) -> None:
    claim = store.claimed(num_lines=20)
    rows = [_failure(i, "context_length_exceeded") for i in range(1, 16)]
    rows += [_failure(16, "internal", 500), Outcome(17, 200, "{}")]
    store.work.commit(claim, rows, NOW)
    store.batches.cancel(claim.batch_id, NOW)
    store.work.release(claim)
    store.closing.close_unfinished(store.closing.claim("server", NOW, 60), NOW)
    groups = store.progress.error_groups(claim.batch_id)
    assert [(g.status_code, g.code, g.count) for g in groups] == [
        (400, "context_length_exceeded", 15),
        (None, "batch_cancelled", 3),
        (500, "internal", 1),
    ]
    assert groups[0].lines == list(range(1, 11))
    assert groups[0].message == "wrong context_length_exceeded"
    assert groups[1].lines == [18, 19, 20]
