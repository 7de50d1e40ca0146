"""Figures of all projects together, for those who watch the installation. Few, cheap queries."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, and_, case, func, select

from trunkline.store.database import Database
from trunkline.store.schema import batches, files, webhook_deliveries
from trunkline.store.states import BatchStatus


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """Batches that are alike in all that is told here."""

    status: BatchStatus
    model: str | None  # None: not validated
    is_paused: bool
    is_claimed: bool
    num_batches: int
    since: int  # unix seconds; when the first of them came to this status
    num_lines: int
    num_completed: int
    num_failed: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_queued_tokens: int  # of prompts without an outcome, estimated


@dataclass(frozen=True, slots=True)
class FileTotals:
    """Files of one purpose."""

    purpose: str
    num_files: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class DeliveryTotals:
    """Webhook deliveries: to be tried, done, given up."""

    num_pending: int
    num_delivered: int
    num_failed: int


@dataclass(frozen=True, slots=True)
class StoreTotals:
    """All figures, as of one moment."""

    batches: tuple[BatchTotals, ...]
    files: tuple[FileTotals, ...]
    deliveries: DeliveryTotals


class Totals:
    """Reads the figures."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self) -> StoreTotals:
        with self._database.read() as connection:
            return StoreTotals(_batches(connection), _files(connection), _deliveries(connection))


def _batches(connection: Connection) -> tuple[BatchTotals, ...]:
    is_paused = batches.c.paused_at.is_not(None)
    is_claimed = batches.c.lease_token.is_not(None)
    came_at = case(
        (batches.c.status == BatchStatus.IN_PROGRESS, batches.c.in_progress_at),
        (batches.c.status == BatchStatus.FINALIZING, batches.c.finalizing_at),
        (batches.c.status == BatchStatus.CANCELLING, batches.c.cancelling_at),
    )
    since = func.coalesce(came_at, batches.c.created_at)
    num_open = batches.c.num_total - batches.c.num_completed - batches.c.num_failed
    num_total = func.nullif(batches.c.num_total, 0)
    sums = {
        "num_lines": batches.c.num_total,
        "num_completed": batches.c.num_completed,
        "num_failed": batches.c.num_failed,
        "num_prompt_tokens": batches.c.num_prompt_tokens,
        "num_cached_tokens": batches.c.num_cached_tokens,
        "num_output_tokens": batches.c.num_output_tokens,
        "num_queued_tokens": batches.c.num_estimated_tokens * num_open / num_total,
    }
    query = select(
        batches.c.status,
        batches.c.model,
        is_paused.label("is_paused"),
        is_claimed.label("is_claimed"),
        func.count().label("num_batches"),
        func.min(since).label("since"),
        *(func.coalesce(func.sum(column), 0).label(name) for name, column in sums.items()),
    ).group_by(batches.c.status, batches.c.model, is_paused, is_claimed)
    return tuple(
        BatchTotals(
            status=BatchStatus(row.status),
            model=row.model,
            is_paused=bool(row.is_paused),
            is_claimed=bool(row.is_claimed),
            num_batches=row.num_batches,
            since=row.since,
            **{name: int(row._mapping[name]) for name in sums},
        )
        for row in connection.execute(query)
    )


def _files(connection: Connection) -> tuple[FileTotals, ...]:
    query = select(
        files.c.purpose, func.count().label("num_files"), func.sum(files.c.num_bytes)
    ).group_by(files.c.purpose)
    return tuple(
        FileTotals(purpose, num_files, int(num_bytes))
        for purpose, num_files, num_bytes in connection.execute(query)
    )


def _deliveries(connection: Connection) -> DeliveryTotals:
    is_pending = webhook_deliveries.c.next_attempt_at.is_not(None)
    is_delivered = webhook_deliveries.c.delivered_at.is_not(None)
    row = connection.execute(
        select(
            func.count(case((is_pending, 1))),
            func.count(case((is_delivered, 1))),
            func.count(case((and_(~is_pending, ~is_delivered), 1))),
        )
    ).one()
    return DeliveryTotals(*row)
