"""Queries on batches: what the API needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Row, insert, select, tuple_, update

from trunkline.store.database import Database, new_id
from trunkline.store.errors import IllegalTransition, NotFound, UnknownCursor
from trunkline.store.records import BatchRecord, LineError, NewBatch, Outcome, OutcomeRow, Page
from trunkline.store.schema import batch_requests, batches, files, outcomes
from trunkline.store.states import BatchStatus, sources

_NOT_IN_RECORD = ("plan", "lease_holder", "lease_token", "lease_expires_at")
COLUMNS = tuple(column for column in batches.c if column.name not in _NOT_IN_RECORD)

# Outcomes that are read at once.
CHUNK_ROWS = 500


def batch_record(row: Row[Any]) -> BatchRecord:
    values = dict(row._mapping)
    values["status"] = BatchStatus(values["status"])
    errors = json.loads(values["errors"]) if values["errors"] is not None else []
    values["errors"] = tuple(LineError(**error) for error in errors)
    if values["metadata"] is not None:
        values["metadata"] = json.loads(values["metadata"])
    return BatchRecord(**values)


class Batches:
    """Batches of the API."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, new: NewBatch, now: int) -> BatchRecord:
        """Create a batch, to be validated.

        Raises:
            NotFound: there is no such input file.
        """
        batch_id = new_id("batch_")
        with self._database.write() as connection:
            # The lock keeps the file until the batch is there, which keeps it from then on.
            file = select(files.c.id).where(files.c.id == new.input_file_id)
            if connection.execute(file.with_for_update(read=True)).first() is None:
                raise NotFound("file", new.input_file_id)
            connection.execute(
                insert(batches).values(
                    id=batch_id,
                    endpoint=new.endpoint,
                    input_file_id=new.input_file_id,
                    completion_window=new.completion_window,
                    status=BatchStatus.VALIDATING,
                    created_at=now,
                    expires_at=new.expires_at,
                    metadata=None if new.metadata is None else json.dumps(new.metadata),
                    output_expires_after_seconds=new.output_expires_after_seconds,
                )
            )
        return self.get(batch_id)

    def get(self, batch_id: str) -> BatchRecord:
        """The batch.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as connection:
            row = connection.execute(select(*COLUMNS).where(batches.c.id == batch_id)).first()
        if row is None:
            raise NotFound("batch", batch_id)
        return batch_record(row)

    def plan(self, batch_id: str) -> dict[str, Any] | None:
        """The engine's plan of the batch; None before it is planned.

        Raises:
            NotFound: there is no such batch.
        """
        with self._database.read() as connection:
            row = connection.execute(select(batches.c.plan).where(batches.c.id == batch_id)).first()
        if row is None:
            raise NotFound("batch", batch_id)
        return None if row.plan is None else dict(json.loads(row.plan))

    def list(self, limit: int = 20, after: str | None = None) -> Page[BatchRecord]:
        """Batches, newest first, beginning behind the batch `after`.

        Raises:
            UnknownCursor: there is no batch `after`.
        """
        query = select(*COLUMNS).order_by(batches.c.created_at.desc(), batches.c.id.desc())
        with self._database.read() as connection:
            if after is not None:
                cursor = connection.execute(
                    select(batches.c.created_at, batches.c.id).where(batches.c.id == after)
                ).first()
                if cursor is None:
                    raise UnknownCursor(after)
                query = query.where(tuple_(batches.c.created_at, batches.c.id) < tuple_(*cursor))
            rows = connection.execute(query.limit(limit + 1)).all()
        return Page(tuple(map(batch_record, rows[:limit])), has_more=len(rows) > limit)

    def cancel(self, batch_id: str, now: int) -> BatchRecord:
        """Ask for a batch to be cancelled; one that is cancelled already is returned as it is.

        Raises:
            NotFound: there is no such batch.
            IllegalTransition: the batch is through, or about to be.
        """
        with self._database.write() as connection:
            connection.execute(
                update(batches)
                .where(batches.c.id == batch_id)
                .where(batches.c.status.in_(sources(BatchStatus.CANCELLING)))
                .values(status=BatchStatus.CANCELLING, cancelling_at=now)
            )
        batch = self.get(batch_id)
        if batch.status not in {BatchStatus.CANCELLING, BatchStatus.CANCELLED}:
            raise IllegalTransition(batch_id, batch.status, BatchStatus.CANCELLING)
        return batch

    def outcomes(self, batch_id: str, after_line: int = 0) -> Iterator[OutcomeRow]:
        """The outcomes of a batch by line, beginning behind `after_line`; few in memory at once."""
        joined = outcomes.join(batch_requests)
        query = (
            select(outcomes, batch_requests.c.custom_id)
            .select_from(joined)
            .where(outcomes.c.batch_id == batch_id)
            .order_by(outcomes.c.line)
            .limit(CHUNK_ROWS)
        )
        while True:
            with self._database.read() as connection:
                rows = connection.execute(query.where(outcomes.c.line > after_line)).all()
            for row in rows:
                yield OutcomeRow(
                    request_id=row.request_id,
                    custom_id=row.custom_id,
                    outcome=Outcome(
                        line=row.line,
                        status_code=row.status_code,
                        body=row.body,
                        error_code=row.error_code,
                        error_message=row.error_message,
                        num_prompt_tokens=row.num_prompt_tokens,
                        num_cached_tokens=row.num_cached_tokens,
                        num_output_tokens=row.num_output_tokens,
                        num_reasoning_tokens=row.num_reasoning_tokens,
                    ),
                )
            if len(rows) < CHUNK_ROWS:
                return
            after_line = rows[-1].line
