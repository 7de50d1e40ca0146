"""A batch's way through the store, on both databases."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import event, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from trunkline.store.errors import (
    IllegalTransition,
    LeaseLost,
    NotFound,
    UnknownCursor,
)
from trunkline.store.records import EngineRecord, Held, LineError, NewBatch, NewRequest, Outcome
from trunkline.store.schema import batches, outcomes
from trunkline.store.states import TRANSITIONS, BatchStatus, is_terminal

NOW = 1_000_000
MODEL = "tiny"


def answer(line: int, status_code: int = 200) -> Outcome:
    return Outcome(
        line=line,
        status_code=status_code,
        body="{}",
        num_prompt_tokens=10,
        num_cached_tokens=4,
        num_output_tokens=3,
    )


def test_the_whole_way(store: Any) -> None:
    batch = store.validating(num_lines=3)
    assert batch.status is BatchStatus.VALIDATING
    assert batch.metadata == {"a": "b"}
    assert (batch.num_total, batch.output_file_id, batch.errors) == (0, None, ())

    claim = store.closing.claim("server", NOW, 60)
    assert claim.batch_id == batch.id
    requests = [NewRequest(i, f"r{i}", 44 * (i - 1), 10) for i in (1, 2, 3)]
    store.closing.accept(claim, requests, MODEL, 0, NOW + 1)
    batch = store.batches.get(batch.id)
    assert (batch.status, batch.in_progress_at) == (BatchStatus.IN_PROGRESS, NOW + 1)
    assert (batch.num_total, batch.model) == (3, MODEL)

    claim = store.work.claim("engine", [MODEL], NOW + 2, 60)
    assert store.work.commit(claim, [answer(1), answer(3, 400)], NOW + 3) == 2
    batch = store.batches.get(batch.id)
    assert (batch.num_completed, batch.num_failed) == (1, 1)
    assert (batch.num_prompt_tokens, batch.num_cached_tokens, batch.num_output_tokens) == (20, 8, 6)
    assert not store.work.finish(claim, NOW + 4), "line 2 has no outcome"

    assert store.work.commit(claim, [answer(1), answer(2)], NOW + 5) == 1, "line 1 has one"
    assert store.work.finish(claim, NOW + 6)
    batch = store.batches.get(batch.id)
    assert (batch.status, batch.finalizing_at) == (BatchStatus.FINALIZING, NOW + 6)
    assert (batch.num_completed, batch.num_failed, batch.num_prompt_tokens) == (2, 1, 30)

    claim = store.closing.claim("server", NOW + 7, 60)
    assert store.closing.close_unfinished(claim, NOW + 7) == 0
    rows = list(store.outcomes.by_line(batch.id))
    assert [(row.custom_id, row.outcome.line, row.outcome.status_code) for row in rows] == [
        ("r1", 1, 200),
        ("r2", 2, 200),
        ("r3", 3, 400),
    ]
    assert len({row.request_id for row in rows}) == 3
    published = store.closing.publish(claim, store.blob(b"out"), store.blob(b"err"), NOW + 8)
    assert (published.status, published.completed_at) == (BatchStatus.COMPLETED, NOW + 8)
    assert published == store.batches.get(batch.id)
    assert store.files.get(published.output_file_id).num_bytes == 3
    assert store.files.get(published.error_file_id).num_bytes == 3
    assert store.closing.claim("server", NOW + 9, 60) is None
    assert store.work.claim("engine", [MODEL], NOW + 9, 60) is None


def test_requests_are_read_from_the_input_file(store: Any) -> None:
    claim = store.claimed(num_lines=1201)
    rows = list(store.work.unfinished(claim))
    assert [row.line for row in rows] == list(range(1, 1202))
    assert rows[700].body == {"prompt": "é701"}
    assert rows[700].custom_id == "r701"
    store.work.commit(claim, [answer(line) for line in range(2, 1202)], NOW)
    assert [row.line for row in store.work.unfinished(claim)] == [1]


def test_what_was_answered_tells_how_long_answers_are(store: Any) -> None:
    claim = store.claimed(num_lines=4)
    assert store.work.finished_lengths(claim, 10) == []
    store.work.commit(claim, [answer(1), answer(2, 400), answer(3)], NOW)
    found = store.work.finished_lengths(claim, 10)
    assert [(row.line, row.body, tokens) for row, tokens in found] == [
        (1, {"prompt": "é1"}, 3),
        (3, {"prompt": "é3"}, 3),
    ]
    assert [row.line for row, _ in store.work.finished_lengths(claim, 1)] == [3]


def test_the_plan_is_there_for_everybody(store: Any) -> None:
    claim = store.claimed()
    assert store.batches.plan(claim.batch_id) is None
    store.work.save_plan(claim, {"saved_share": 0.5})
    assert store.batches.plan(claim.batch_id) == {"saved_share": 0.5}
    with pytest.raises(NotFound):
        store.batches.plan("batch_nope")
    store.work.release(claim)
    with pytest.raises(LeaseLost):
        store.work.save_plan(claim, {})


def test_lines_whose_input_file_is_gone(store: Any) -> None:
    claim = store.claimed(num_lines=3)
    store.work.commit(claim, [answer(2)], NOW)
    store.blobs.delete(store.files.get(claim.input_file_id).blob_key)
    with pytest.raises(FileNotFoundError):
        list(store.work.unfinished(claim))
    assert store.work.unfinished_lines(claim) == [1, 3]


@pytest.mark.parametrize("status", list(BatchStatus))
def test_cancel_in_every_status(store: Any, status: BatchStatus) -> None:
    batch = store.accepted()
    with store.database.write() as connection:
        connection.execute(update(batches).values(status=status))
    if status in {BatchStatus.CANCELLING, BatchStatus.CANCELLED}:
        assert store.batches.cancel(batch.id, NOW + 5).status is status
    elif BatchStatus.CANCELLING in TRANSITIONS[status]:
        cancelled = store.batches.cancel(batch.id, NOW + 5)
        assert (cancelled.status, cancelled.cancelling_at) == (BatchStatus.CANCELLING, NOW + 5)
    else:
        with pytest.raises(
            IllegalTransition, match=f"cannot cancel batch {batch.id}, which is {status}"
        ):
            store.batches.cancel(batch.id, NOW + 5)
        assert store.batches.get(batch.id).status is status


def test_every_status_has_a_column_that_says_when_and_every_way_ends() -> None:
    for status, targets in TRANSITIONS.items():
        when = "created_at" if status is BatchStatus.VALIDATING else f"{status}_at"
        assert when in batches.c
        assert is_terminal(status) == (not targets)
    reached = {BatchStatus.VALIDATING}
    while further := {t for s in reached for t in TRANSITIONS[s]} - reached:
        reached |= further
    assert reached == set(BatchStatus)


@pytest.mark.parametrize("committed_first", [True, False])
def test_cancelled_half_way(store: Any, committed_first: bool) -> None:
    claim = store.claimed(num_lines=4)
    if committed_first:
        store.work.commit(claim, [answer(1)], NOW)
    store.batches.cancel(claim.batch_id, NOW + 1)
    assert store.work.heartbeat("engine", {}, [claim], NOW + 2, 60) == {
        claim.batch_id: Held(BatchStatus.CANCELLING, is_paused=False)
    }
    assert store.closing.claim("server", NOW + 2, 60) is None, "the engine still holds it"
    if not committed_first:
        store.work.commit(claim, [answer(1)], NOW + 3)
    assert not store.work.finish(claim, NOW + 3)
    store.work.release(claim)

    closing = store.closing.claim("server", NOW + 4, 60)
    assert closing.status is BatchStatus.CANCELLING
    with pytest.raises(LeaseLost):
        store.work.commit(claim, [answer(2)], NOW + 4)
    assert store.closing.close_unfinished(closing, NOW + 5) == 3
    batch = store.closing.publish(closing, store.blob(), store.blob(), NOW + 6)
    assert (batch.status, batch.cancelled_at) == (BatchStatus.CANCELLED, NOW + 6)
    assert (batch.num_completed, batch.num_failed, batch.num_total) == (1, 0, 4)
    rows = list(store.outcomes.by_line(batch.id))
    assert [row.outcome.error_code for row in rows] == [None] + 3 * ["batch_cancelled"]
    assert len({row.request_id for row in rows}) == 4


def test_cancelled_while_it_is_validated(store: Any) -> None:
    batch = store.validating()
    claim = store.closing.claim("server", NOW, 60)
    store.batches.cancel(batch.id, NOW + 1)
    store.closing.accept(claim, [NewRequest(1, "r1", 0, 5)], MODEL, 0, NOW + 2)
    assert store.batches.get(batch.id).status is BatchStatus.CANCELLING
    assert store.work.claim("engine", [MODEL], NOW + 3, 60) is None
    claim = store.closing.claim("server", NOW + 3, 60)
    assert store.closing.close_unfinished(claim, NOW + 3) == 1
    assert store.closing.publish(claim, None, store.blob(), NOW + 4).status is BatchStatus.CANCELLED


def test_rejected_with_every_error(store: Any) -> None:
    batch = store.validating()
    claim = store.closing.claim("server", NOW, 60)
    errors = [LineError("invalid_json_line", "bad", None, 3), LineError("x", "y", "z", None)]
    store.closing.reject(claim, errors, NOW + 1)
    batch = store.batches.get(batch.id)
    assert (batch.status, batch.failed_at) == (BatchStatus.FAILED, NOW + 1)
    assert batch.errors == tuple(errors)
    with pytest.raises(LeaseLost):
        store.closing.accept(claim, [], MODEL, 0, NOW + 2)


def test_expired_half_way(store: Any) -> None:
    claim = store.claimed(num_lines=3)
    store.work.commit(claim, [answer(2)], NOW)
    deadline = store.batches.get(claim.batch_id).expires_at
    assert store.closing.expire_due(deadline - 1) == 0
    assert store.closing.expire_due(deadline) == 1
    assert store.closing.expire_due(deadline) == 0
    with pytest.raises(LeaseLost):
        store.work.commit(claim, [answer(1)], deadline)
    assert store.work.heartbeat("engine", {}, [claim], deadline, 60) == {}
    closing = store.closing.claim("server", deadline, 60)
    assert store.closing.close_unfinished(closing, deadline) == 2
    batch = store.closing.publish(closing, store.blob(), store.blob(), deadline + 1)
    assert (batch.status, batch.expired_at) == (BatchStatus.EXPIRED, deadline + 1)
    assert (batch.num_completed, batch.num_failed) == (1, 0)


def test_a_batch_that_is_late_is_validated_before_it_expires(store: Any) -> None:
    batch = store.validating(expires_at=NOW + 5)
    assert store.closing.expire_due(NOW + 5) == 0
    claim = store.closing.claim("server", NOW + 6, 60)
    store.closing.accept(claim, [NewRequest(1, "r1", 0, 5)], MODEL, 0, NOW + 7)
    assert store.closing.expire_due(NOW + 8) == 1
    claim = store.closing.claim("server", NOW + 8, 60)
    assert store.closing.close_unfinished(claim, NOW + 8) == 1
    store.closing.publish(claim, None, store.blob(), NOW + 9)
    batch = store.batches.get(batch.id)
    assert (batch.status, batch.num_total) == (BatchStatus.EXPIRED, 1)


def test_a_lease_that_ran_out_goes_to_somebody_else(store: Any) -> None:
    first = store.claimed()
    assert store.work.claim("other", [MODEL], NOW + 59, 60) is None
    assert store.work.heartbeat("engine", {}, [first], NOW + 50, 60) != {}
    assert store.work.claim("other", [MODEL], NOW + 100, 60) is None
    second = store.work.claim("other", [MODEL], NOW + 111, 60)
    assert second.batch_id == first.batch_id
    assert second.token != first.token
    assert store.work.heartbeat("engine", {}, [first], NOW + 112, 60) == {}
    with pytest.raises(LeaseLost):
        store.work.commit(first, [answer(1)], NOW + 112)
    assert not store.work.finish(first, NOW + 112)
    store.work.release(first)
    assert store.work.commit(second, [answer(1)], NOW + 112) == 1


def engine_record(name: str = "engine", now: float = NOW) -> EngineRecord:
    return EngineRecord(name, MODEL, "cpu", "float32", int(now), now, 2048, {})


def test_an_engine_that_starts_again_gets_its_batches_back_at_once(store: Any) -> None:
    first = store.claimed(holder="engine")
    store.work.register(engine_record("other"))
    assert store.work.claim("engine", [MODEL], NOW + 1, 60) is None, "it does hold it already"
    store.work.register(engine_record("engine"))
    second = store.work.claim("engine", [MODEL], NOW + 1, 60)
    assert second.batch_id == first.batch_id
    with pytest.raises(LeaseLost):
        store.work.commit(first, [answer(1)], NOW + 2)


def test_a_server_that_starts_again_goes_on_at_once(store: Any) -> None:
    store.validating()
    first = store.closing.claim("server", NOW, 60)
    store.closing.release_all_of("server")
    second = store.closing.claim("server", NOW + 1, 60)
    assert second.batch_id == first.batch_id
    with pytest.raises(LeaseLost):
        store.closing.heartbeat(first, NOW + 2, 60)
    store.closing.heartbeat(second, NOW + 2, 60)


def test_the_earliest_deadline_is_claimed_first(store: Any) -> None:
    late = store.accepted(expires_at=NOW + 500)
    early = store.accepted(expires_at=NOW + 100)
    assert store.work.claim("a", ["another model"], NOW, 60) is None
    claims = [store.work.claim("a", [MODEL], NOW, 60) for _ in range(3)]
    assert [claim and claim.batch_id for claim in claims] == [early.id, late.id, None]


def test_claims_race_and_no_batch_is_held_by_two(store: Any) -> None:
    ids = {store.accepted(num_lines=1).id for _ in range(40)}
    held: dict[str, str] = {}
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            while (claim := store.work.claim(name, [MODEL], NOW, 600)) is not None:
                with lock:
                    assert claim.batch_id not in held, "two hold one batch"
                    held[claim.batch_id] = name
                store.work.commit(claim, [answer(1)], NOW)
                assert store.work.finish(claim, NOW)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(held) == ids


def test_a_failed_publish_creates_no_file(store: Any) -> None:
    batch = store.finalizing()
    claim = store.closing.claim("server", NOW + 4, 60)
    before = store.files.list()
    with store.database.write() as connection:
        connection.execute(update(batches).values(lease_token="somebody else's"))
    with pytest.raises(LeaseLost):
        store.closing.publish(claim, store.blob(), store.blob(), NOW + 5)
    assert store.files.list() == before
    assert store.batches.get(batch.id).output_file_id is None


def test_lists_are_newest_first_and_stable(store: Any) -> None:
    new = NewBatch("/v1/completions", store.file().id, "24h", NOW + 9, None, None)
    ids = [store.batches.create(new, NOW + i // 3).id for i in range(10)]
    seen, after = [], None
    while True:
        page = store.batches.list(limit=4, after=after)
        seen += [batch.id for batch in page.items]
        if not page.has_more:
            break
        after = page.items[-1].id
    assert seen == ids[::-1]
    with pytest.raises(UnknownCursor):
        store.batches.list(after="batch_nope")


def test_what_is_not_there(store: Any) -> None:
    with pytest.raises(NotFound):
        store.batches.get("batch_nope")
    with pytest.raises(NotFound):
        store.batches.cancel("batch_nope", NOW)


def test_the_database_refuses_what_cannot_be(store: Any) -> None:
    claim = store.claimed(num_lines=1)
    bad = [
        update(batches).values(status="lost"),
        update(batches).values(num_completed=2),
        update(batches).values(lease_token=None),
        insert(outcomes).values(
            batch_id=claim.batch_id,
            line=1,
            request_id="x",
            num_prompt_tokens=0,
            num_cached_tokens=0,
            num_output_tokens=0,
            num_reasoning_tokens=0,
            finished_at=0,
        ),
    ]
    for statement in bad:
        with pytest.raises(IntegrityError), store.database.write() as connection:
            connection.execute(statement)


def test_fifty_thousand_lines_are_accepted_and_closed_with_few_statements(store: Any) -> None:
    store.validating()
    claim = store.closing.claim("server", NOW, 60)
    statements: list[str] = []
    event.listen(
        store.database.engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: statements.append(statement),
    )
    rows = [NewRequest(i, f"request-{i}", i * 100, 99) for i in range(1, 50_001)]
    store.closing.accept(claim, rows, MODEL, 0, NOW)
    store.batches.cancel(claim.batch_id, NOW)
    claim = store.closing.claim("server", NOW, 60)
    assert store.closing.close_unfinished(claim, NOW) == 50_000
    assert len(statements) < 50
    with store.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(outcomes)).scalar() == 50_000


def test_engines(store: Any) -> None:
    store.work.register(engine_record("b"))
    store.work.register(engine_record("a", NOW + 50))
    store.work.heartbeat("a", {"num_running": 3}, [], NOW + 100, 60)
    alive = store.engines.list(NOW + 110, alive_within_seconds=20)
    assert [(engine.name, engine.figures) for engine in alive] == [("a", {"num_running": 3})]
    store.work.unregister("a", NOW + 111)
    assert store.engines.list(NOW + 112, alive_within_seconds=20) == ()
    assert store.engines.models() == ((MODEL, NOW),)
    store.work.register(engine_record("c", NOW + 30 * 86_400))
    assert store.engines.models() == ((MODEL, NOW + 30 * 86_400),), "the old ones are forgotten"
