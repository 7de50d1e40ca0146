"""Queries of the server's background work: a batch's beginning and its end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import islice

from sqlalchemy import Connection, exists, func, insert, literal, select, update

from trunkline.store.batches import COLUMNS, batch_record
from trunkline.store.database import Database, new_id
from trunkline.store.errors import LeaseLost
from trunkline.store.files import insert_file
from trunkline.store.leases import (
    NO_LEASE,
    claim_one,
    extend,
    guard,
    release,
    release_all_of,
)
from trunkline.store.outcomes import last_position
from trunkline.store.quotas import over_quota
from trunkline.store.records import BatchRecord, Claim, LineError, NewFile, NewRequest
from trunkline.store.schema import batch_requests, batches, outcomes
from trunkline.store.states import BatchStatus
from trunkline.store.webhooks import enqueue_events

INSERT_ROWS = 5000

EXPIRED = (
    "batch_expired",
    "This request could not be executed before the completion window expired.",
)
CANCELLED = (
    "batch_cancelled",
    "This request was not executed because the batch was cancelled.",
)


class Closing:
    """Validation, expiry and final assembly of batches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def release_all_of(self, holder: str) -> None:
        """Give back what a former process of the same name still holds."""
        with self._database.write() as connection:
            release_all_of(connection, holder)

    def claim(self, holder: str, now: float, lease_seconds: float) -> Claim | None:
        """Claim the oldest batch that waits to be validated, finalized or cancelled."""
        waiting = batches.c.status.in_(
            [BatchStatus.VALIDATING, BatchStatus.FINALIZING, BatchStatus.CANCELLING]
        )
        order = (batches.c.created_at, batches.c.id)
        with self._database.write() as connection:
            return claim_one(connection, waiting, order, holder, now, lease_seconds)

    def heartbeat(self, claim: Claim, now: float, lease_seconds: float) -> None:
        """Renew the lease.

        Raises:
            LeaseLost: it was lost.
        """
        with self._database.write() as connection:
            if not extend(connection, [claim], now, lease_seconds):
                raise LeaseLost(claim.batch_id)

    def release(self, claim: Claim) -> None:
        """Give the lease back with nothing done."""
        with self._database.write() as connection:
            release(connection, claim)

    def accept(
        self,
        claim: Claim,
        requests: Sequence[NewRequest],
        model: str,
        num_estimated_tokens: int,
        now: int,
    ) -> None:
        """The input is valid: store its requests and let the batch run, unless it was cancelled.

        A batch for which its project has no room left is rejected.

        Args:
            num_estimated_tokens: of all prompts.

        Raises:
            LeaseLost: see `guard`.
        """
        with self._database.write() as connection:
            status = guard(connection, claim, BatchStatus.VALIDATING, BatchStatus.CANCELLING)
            if status is BatchStatus.VALIDATING:
                refusal = over_quota(
                    connection, claim.project_id, model, len(requests), num_estimated_tokens
                )
                if refusal is not None:
                    _reject(connection, claim, status, [refusal], now)
                    return
            num_total = 0
            rows = iter(requests)
            while chunk := list(islice(rows, INSERT_ROWS)):
                num_total += len(chunk)
                connection.execute(
                    insert(batch_requests),
                    [{"batch_id": claim.batch_id, **asdict(row)} for row in chunk],
                )
            values: dict[str, object] = {
                "num_total": num_total,
                "num_estimated_tokens": num_estimated_tokens,
                "model": model,
                **NO_LEASE,
            }
            if status is BatchStatus.VALIDATING:
                values |= {"status": BatchStatus.IN_PROGRESS, "in_progress_at": now}
            connection.execute(
                update(batches).where(batches.c.id == claim.batch_id).values(**values)
            )

    def reject(self, claim: Claim, errors: Iterable[LineError], now: int) -> None:
        """The input is not valid: the batch has failed, or is cancelled if that was asked for.

        Raises:
            LeaseLost: see `guard`.
        """
        with self._database.write() as connection:
            status = guard(connection, claim, BatchStatus.VALIDATING, BatchStatus.CANCELLING)
            _reject(connection, claim, status, errors, now)

    def expire_due(self, now: int) -> int:
        """Let every running batch whose window is over go on to its end; how many there were."""
        with self._database.write() as connection:
            running = connection.execute(
                update(batches)
                .where(batches.c.status == BatchStatus.IN_PROGRESS, batches.c.expires_at <= now)
                .values(status=BatchStatus.FINALIZING, finalizing_at=now, **NO_LEASE)
            )
        return running.rowcount

    def close_unfinished(self, claim: Claim, now: int) -> int:
        """Give every line without an outcome one that says why it was not run; how many.

        These lines do not count as failed.

        Raises:
            LeaseLost: see `guard`.
        """
        with self._database.write() as connection:
            status = guard(connection, claim, BatchStatus.FINALIZING, BatchStatus.CANCELLING)
            code, message = CANCELLED if status is BatchStatus.CANCELLING else EXPIRED
            has_outcome = exists().where(
                outcomes.c.batch_id == batch_requests.c.batch_id,
                outcomes.c.line == batch_requests.c.line,
            )
            # A request's id must be unique; the batch's own id and the line make it so.
            prefix = new_id("batch_req_")
            place = func.row_number().over(order_by=batch_requests.c.line)
            open_lines = select(
                batch_requests.c.batch_id,
                batch_requests.c.line,
                place + last_position(connection, claim.batch_id),
                literal(prefix) + batch_requests.c.line.cast(outcomes.c.request_id.type),
                literal(code),
                literal(message),
                *(literal(0) for _ in range(4)),
                literal(now),
            ).where(batch_requests.c.batch_id == claim.batch_id, ~has_outcome)
            columns = ["batch_id", "line", "position", "request_id", "error_code", "error_message"]
            columns += ["num_prompt_tokens", "num_cached_tokens", "num_output_tokens"]
            columns += ["num_reasoning_tokens", "finished_at"]
            closed = connection.execute(
                insert(outcomes).from_select(columns, open_lines),
                execution_options={"preserve_rowcount": True},
            )
            return closed.rowcount

    def publish(
        self, claim: Claim, output: NewFile | None, error: NewFile | None, now: int
    ) -> BatchRecord:
        """Create the batch's files and end it, in one transaction.

        Raises:
            LeaseLost: see `guard`.
        """
        with self._database.write() as connection:
            status = guard(connection, claim, BatchStatus.FINALIZING, BatchStatus.CANCELLING)
            if status is BatchStatus.CANCELLING:
                final = BatchStatus.CANCELLED
            else:
                expired = connection.execute(
                    select(outcomes.c.line)
                    .where(outcomes.c.batch_id == claim.batch_id)
                    .where(outcomes.c.error_code == EXPIRED[0])
                    .limit(1)
                ).first()
                final = BatchStatus.COMPLETED if expired is None else BatchStatus.EXPIRED
            values: dict[str, object] = {
                "status": final,
                f"{final}_at": now,
                "output_file_id": output
                and insert_file(connection, claim.project_id, output, now).id,
                "error_file_id": error and insert_file(connection, claim.project_id, error, now).id,
                **NO_LEASE,
            }
            row = connection.execute(
                update(batches)
                .where(batches.c.id == claim.batch_id)
                .values(**values)
                .returning(*COLUMNS)
            ).one()
            enqueue_events(connection, claim.project_id, f"batch.{final}", claim.batch_id, now)
        return batch_record(row)


def _reject(
    connection: Connection,
    claim: Claim,
    status: BatchStatus,
    errors: Iterable[LineError],
    now: int,
) -> None:
    """End a batch that cannot run; it is cancelled rather than failed if that was asked for."""
    final = BatchStatus.FAILED if status is BatchStatus.VALIDATING else BatchStatus.CANCELLED
    connection.execute(
        update(batches)
        .where(batches.c.id == claim.batch_id)
        .values(
            status=final,
            errors=json.dumps([asdict(error) for error in errors]),
            **{f"{final}_at": now},
            **NO_LEASE,
        )
    )
    enqueue_events(connection, claim.project_id, f"batch.{final}", claim.batch_id, now)
