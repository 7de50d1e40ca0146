"""What a project may queue, and when it gets it back."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import pytest

from trunkline.store.closing import Closing
from trunkline.store.database import Database
from trunkline.store.projects import Projects
from trunkline.store.quotas import CODE
from trunkline.store.records import BatchRecord, NewRequest, Outcome, ProjectLimits
from trunkline.store.states import BatchStatus

NOW = 1_000_000
MODEL = "tiny"


def _limit(store: Any, **limits: int) -> None:
    Projects(store.database).set_limits("default", ProjectLimits(**limits))


def _validate(store: Any, num_lines: int, num_tokens: int = 0) -> BatchRecord:
    batch = store.validating(num_lines)
    # Batches that are to be closed are claimed first, and stay claimed.
    while (claim := store.closing.claim("server", NOW, 60)).batch_id != batch.id:
        pass
    requests = [NewRequest(i, f"r{i}", i, 1) for i in range(1, num_lines + 1)]
    store.closing.accept(claim, requests, MODEL, num_tokens, NOW)
    found: BatchRecord = store.batches.get(batch.id)
    return found


def test_a_batch_beyond_the_limit_fails_and_says_why(store: Any) -> None:
    _limit(store, max_queued_requests=10)
    assert _validate(store, 6).status is BatchStatus.IN_PROGRESS
    refused = _validate(store, 5)
    assert refused.status is BatchStatus.FAILED
    assert refused.num_total == 0
    (error,) = refused.errors
    assert (error.code, error.line, error.param) == (CODE, None, None)
    assert "Limit: 10 enqueued requests; 6 are enqueued and this batch has 5." in error.message
    assert _validate(store, 4).status is BatchStatus.IN_PROGRESS


def test_tokens_are_limited_too(store: Any) -> None:
    _limit(store, max_queued_tokens=1000)
    assert _validate(store, 1, num_tokens=600).status is BatchStatus.IN_PROGRESS
    refused = _validate(store, 1, num_tokens=401)
    assert refused.errors[0].message.startswith("Enqueued token limit reached for tiny in project")
    assert _validate(store, 1, num_tokens=400).status is BatchStatus.IN_PROGRESS


@pytest.mark.parametrize("how", ["answer", "cancel", "expire"])
def test_what_was_queued_is_given_back(store: Any, how: str) -> None:
    _limit(store, max_queued_requests=4, max_queued_tokens=400)
    batch = _validate(store, 4, num_tokens=400)
    assert _validate(store, 1).status is BatchStatus.FAILED
    if how == "answer":
        claim = store.work.claim("engine", [MODEL], NOW, 60)
        store.work.commit(claim, [Outcome(1, 200, "{}"), Outcome(2, 400, "{}")], NOW)
    elif how == "cancel":
        store.batches.cancel(batch.id, NOW)
    else:
        store.closing.expire_due(batch.expires_at)
    assert _validate(store, 3).status is BatchStatus.FAILED if how == "answer" else True
    assert _validate(store, 2, num_tokens=200).status is BatchStatus.IN_PROGRESS


def test_a_batch_that_is_cancelled_while_it_is_validated_needs_no_room(store: Any) -> None:
    _limit(store, max_queued_requests=1)
    batch = store.validating(4)
    claim = store.closing.claim("server", NOW, 60)
    store.batches.cancel(batch.id, NOW)
    requests = [NewRequest(i, f"r{i}", i, 1) for i in range(1, 5)]
    store.closing.accept(claim, requests, MODEL, 0, NOW)
    found = store.batches.get(batch.id)
    assert (found.status, found.num_total) == (BatchStatus.CANCELLING, 4)


def test_two_at_once_cannot_both_take_what_is_left(store: Any, database_url: str) -> None:
    _limit(store, max_queued_requests=4)
    batches = [store.validating(4) for _ in range(6)]
    claims = [store.closing.claim(f"server-{i}", NOW, 60) for i in range(6)]
    barrier = threading.Barrier(6)
    requests = [NewRequest(i, f"r{i}", i, 1) for i in range(1, 5)]

    def accept(claim: Any) -> None:
        with closing(Database.open(database_url)) as database:
            barrier.wait()
            Closing(database).accept(claim, requests, MODEL, 0, NOW)

    threads = [threading.Thread(target=accept, args=(claim,)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [store.batches.get(batch.id).status for batch in batches]
    assert sorted(statuses) == [BatchStatus.FAILED] * 5 + [BatchStatus.IN_PROGRESS]
