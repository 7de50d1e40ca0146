"""Queries on batches: what the API needs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, func, insert, select, tuple_, update

from trunkline.store.database import Database, new_id
from trunkline.store.errors import (
    IdempotencyConflict,
    IllegalTransition,
    NotFound,
    UnknownCursor,
)
from trunkline.store.files import insert_file
from trunkline.store.records import (
    BatchRecord,
    Idempotency,
    LineError,
    NewBatch,
    NewFile,
    Page,
)
from trunkline.store.schema import batches, files, projects
from trunkline.store.states import BatchStatus, sources

_NOT_IN_RECORD = {
    *("plan", "num_estimated_tokens", "idempotency_key", "idempotency_sha256"),
    *("lease_holder", "lease_token", "lease_expires_at"),
}
COLUMNS = tuple(column for column in batches.c if column.name not in _NOT_IN_RECORD)

# A batch that waits or runs may be paused; a paused one can still be cancelled.
_PAUSABLE = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)


def batch_record(row: Row[Any]) -> BatchRecord:
    values = {column.name: row._mapping[column.name] for column in COLUMNS}
    values["status"] = BatchStatus(values["status"])
    errors = json.loads(values["errors"]) if values["errors"] is not None else []
    values["errors"] = tuple(LineError(**error) for error in errors)
    if values["metadata"] is not None:
        values["metadata"] = json.loads(values["metadata"])
    return BatchRecord(**values)


# Made once: making it takes longer than running it.
_BY_KEYS = select(*COLUMNS).where(
    tuple_(batches.c.project_id, batches.c.id).in_(bindparam("keys", expanding=True))
)


def look_up_batches(
    database: Database, keys: Collection[tuple[str, str]]
) -> dict[tuple[str, str], BatchRecord]:
    """The batches that are there, of those asked for by project and id.

    Keys come from many clients: none may make the query fail for the others.
    """
    # PostgreSQL refuses a query with a NUL character, which no id has.
    possible = [key for key in keys if "\0" not in key[1]]
    with database.read() as connection:
        records = map(batch_record, connection.execute(_BY_KEYS, {"keys": possible}).all())
    return {(record.project_id, record.id): record for record in records}


class Batches:
    """Batches of one project; those of others are not there."""

    def __init__(self, database: Database, project_id: str) -> None:
        self._database = database
        self._project_id = project_id

    def create(self, new: NewBatch, now: int, input_file: NewFile | None = None) -> BatchRecord:
        """Create a batch, to be validated.

        With an idempotency key that came before, nothing is created, and the batch of that time is
        returned.

        Args:
            input_file: is created along with the batch, as its input; `new.input_file_id` does
                not count then.

        Raises:
            NotFound: there is no such input file.
            IdempotencyConflict: the key came with another request before.
        """
        with self._database.write() as connection:
            if new.idempotency is not None:
                known = self._known(connection, new.idempotency)
                if known is not None:
                    return known
            if input_file is None:
                input_file_id = self._hold_file(connection, new.input_file_id)
            else:
                input_file_id = insert_file(connection, self._project_id, input_file, now).id
            key = new.idempotency
            row = connection.execute(
                insert(batches)
                .values(
                    id=new_id("batch_"),
                    project_id=self._project_id,
                    endpoint=new.endpoint,
                    input_file_id=input_file_id,
                    completion_window=new.completion_window,
                    status=BatchStatus.VALIDATING,
                    created_at=now,
                    expires_at=new.expires_at,
                    metadata=None if new.metadata is None else json.dumps(new.metadata),
                    output_expires_after_seconds=new.output_expires_after_seconds,
                    priority=new.priority,
                    retry_of=new.retry_of,
                    idempotency_key=None if key is None else key.key,
                    idempotency_sha256=None if key is None else key.sha256,
                )
                .returning(*COLUMNS)
            ).one()
        return batch_record(row)

    def _known(self, connection: Connection, idempotency: Idempotency) -> BatchRecord | None:
        """The batch that this key has created."""
        # Two requests with one key come one after the other.
        connection.execute(
            select(projects.c.id).where(projects.c.id == self._project_id).with_for_update()
        )
        row = connection.execute(
            select(batches).where(
                batches.c.project_id == self._project_id,
                batches.c.idempotency_key == idempotency.key,
            )
        ).first()
        if row is None:
            return None
        if row.idempotency_sha256 != idempotency.sha256:
            raise IdempotencyConflict(idempotency.key)
        return batch_record(row)

    def _hold_file(self, connection: Connection, file_id: str) -> str:
        """Keep an input file until the batch is there, which keeps it from then on.

        Raises:
            NotFound: there is no such file.
        """
        file = select(files.c.id).where(
            files.c.id == file_id, files.c.project_id == self._project_id
        )
        if connection.execute(file.with_for_update(read=True)).first() is None:
            raise NotFound("file", file_id)
        return file_id

    def get(self, batch_id: str) -> BatchRecord:
        """The batch.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as connection:
            row = connection.execute(self._select(batch_id, *COLUMNS)).first()
        if row is None:
            raise NotFound("batch", batch_id)
        return batch_record(row)

    def plan(self, batch_id: str) -> dict[str, Any] | None:
        """The engine's plan of the batch; None before it is planned.

        Raises:
            NotFound: there is no such batch.
        """
        with self._database.read() as connection:
            row = connection.execute(self._select(batch_id, batches.c.plan)).first()
        if row is None:
            raise NotFound("batch", batch_id)
        return None if row.plan is None else dict(json.loads(row.plan))

    def _select(self, batch_id: str, *columns: Any) -> Select[Any]:
        return select(*columns).where(
            batches.c.id == batch_id, batches.c.project_id == self._project_id
        )

    def list(self, limit: int = 20, after: str | None = None) -> Page[BatchRecord]:
        """Batches, newest first, beginning behind the batch `after`.

        Raises:
            UnknownCursor: there is no batch `after`.
        """
        query = (
            select(*COLUMNS)
            .where(batches.c.project_id == self._project_id)
            .order_by(batches.c.created_at.desc(), batches.c.id.desc())
        )
        with self._database.read() as connection:
            if after is not None:
                cursor = connection.execute(
                    self._select(after, batches.c.created_at, batches.c.id)
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
        batch = self._change(
            batch_id,
            sources(BatchStatus.CANCELLING),
            {"status": BatchStatus.CANCELLING, "cancelling_at": now},
        )
        if batch.status not in {BatchStatus.CANCELLING, BatchStatus.CANCELLED}:
            raise IllegalTransition(batch_id, batch.status, "cancel")
        return batch

    def pause(self, batch_id: str, now: int) -> BatchRecord:
        """Let no engine work on a batch; its window goes on. A paused batch stays as it is.

        Raises:
            NotFound: there is no such batch.
            IllegalTransition: the batch is through, or about to be.
        """
        return self._set(batch_id, "pause", paused_at=func.coalesce(batches.c.paused_at, now))

    def resume(self, batch_id: str) -> BatchRecord:
        """Let engines work on a paused batch again; one that is not paused stays as it is.

        Raises:
            NotFound: there is no such batch.
            IllegalTransition: the batch is through, or about to be.
        """
        return self._set(batch_id, "resume", paused_at=None)

    def set_priority(self, batch_id: str, priority: int) -> BatchRecord:
        """Let a batch run before those of a lower priority.

        Raises:
            NotFound: there is no such batch.
            IllegalTransition: the batch is through, or about to be.
        """
        return self._set(batch_id, "change the priority of", priority=priority)

    def _set(self, batch_id: str, action: str, **values: Any) -> BatchRecord:
        """Change a batch that is not about to end.

        Raises:
            NotFound, IllegalTransition: see the callers.
        """
        batch = self._change(batch_id, _PAUSABLE, values)
        if batch.status not in _PAUSABLE:
            raise IllegalTransition(batch_id, batch.status, action)
        return batch

    def _change(
        self, batch_id: str, statuses: Collection[BatchStatus], values: Mapping[str, Any]
    ) -> BatchRecord:
        """The batch, with `values` set if it has one of `statuses`."""
        with self._database.write() as connection:
            connection.execute(
                update(batches)
                .where(batches.c.id == batch_id, batches.c.project_id == self._project_id)
                .where(batches.c.status.in_(statuses))
                .values(**values)
            )
        return self.get(batch_id)
