"""Every operation in every status: it does its one step, or changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from sqlalchemy import delete, insert, update

from trunkline.store.errors import IllegalTransition, LeaseLost
from trunkline.store.records import Claim, LineError, NewRequest
from trunkline.store.schema import batch_requests, batches, outcomes
from trunkline.store.states import TRANSITIONS, BatchStatus

NOW = 1_000_000
DEADLINE = NOW + 100

S = BatchStatus


def accept(store: Any, claim: Claim) -> None:
    store.closing.accept(claim, [NewRequest(2, "other", 0, 1)], "tiny", 0, DEADLINE)


def reject(store: Any, claim: Claim) -> None:
    store.closing.reject(claim, [LineError("x", "y", None, None)], DEADLINE)


def cancel(store: Any, claim: Claim) -> None:
    store.batches.cancel(claim.batch_id, DEADLINE)


def expire(store: Any, claim: Claim) -> None:
    store.closing.expire_due(DEADLINE)


def finish(store: Any, claim: Claim) -> None:
    if not store.work.finish(claim, DEADLINE):
        raise LeaseLost(claim.batch_id)


def settle_and_publish(store: Any, claim: Claim) -> None:
    store.closing.close_unfinished(claim, DEADLINE)
    store.closing.publish(claim, None, store.blob(), DEADLINE)


def publish(store: Any, claim: Claim) -> None:
    store.closing.publish(claim, store.blob(), None, DEADLINE)


OPERATIONS: Mapping[Callable[[Any, Claim], None], Mapping[BatchStatus, BatchStatus]] = {
    accept: {S.VALIDATING: S.IN_PROGRESS, S.CANCELLING: S.CANCELLING},
    reject: {S.VALIDATING: S.FAILED, S.CANCELLING: S.CANCELLED},
    cancel: {
        S.VALIDATING: S.CANCELLING,
        S.IN_PROGRESS: S.CANCELLING,
        S.CANCELLING: S.CANCELLING,
        S.CANCELLED: S.CANCELLED,
    },
    expire: {S.IN_PROGRESS: S.FINALIZING}
    | {status: status for status in S if status is not S.IN_PROGRESS},
    finish: {S.IN_PROGRESS: S.FINALIZING},
    settle_and_publish: {S.FINALIZING: S.EXPIRED, S.CANCELLING: S.CANCELLED},
    publish: {S.FINALIZING: S.COMPLETED, S.CANCELLING: S.CANCELLED},
}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_every_operation_in_every_status(
    store: Any, operation: Callable[[Any, Claim], None], subtests: pytest.Subtests
) -> None:
    for status in BatchStatus:
        with subtests.test(status.value):
            check(store, operation, status)


def check(store: Any, operation: Callable[[Any, Claim], None], status: BatchStatus) -> None:
    """Do it with the only batch that there is."""
    with store.database.write() as connection:
        for table in (outcomes, batch_requests, batches):
            connection.execute(delete(table))
    batch = store.validating(expires_at=DEADLINE)
    claim = store.closing.claim("server", NOW, 60)
    with store.database.write() as connection:
        connection.execute(update(batches).values(status=status))
        if operation is settle_and_publish:
            connection.execute(
                insert(batch_requests).values(
                    batch_id=batch.id, line=1, custom_id="r1", offset=0, num_bytes=1
                )
            )
            connection.execute(update(batches).values(num_total=1))
    before = store.batches.get(batch.id)
    num_files = len(store.files.list().items)

    wanted = OPERATIONS[operation].get(status)
    if wanted is None:
        with pytest.raises((LeaseLost, IllegalTransition)):
            operation(store, claim)
    else:
        operation(store, claim)

    after = store.batches.get(batch.id)
    if wanted is None or (wanted is status and operation is not accept):
        assert after == before
        assert len(store.files.list().items) == num_files
    else:
        assert after.status is wanted
        if wanted is not status:
            assert getattr(after, f"{wanted}_at") == DEADLINE


def test_the_operations_do_all_legal_transitions_and_no_other() -> None:
    done = {
        (source, target)
        for steps in OPERATIONS.values()
        for source, target in steps.items()
        if source is not target
    }
    assert done == {(s, target) for s, targets in TRANSITIONS.items() for target in targets}
