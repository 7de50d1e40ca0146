"""Queries on files."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    exists,
    insert,
    select,
    tuple_,
)

from trunkline.store.database import Database, new_id
from trunkline.store.errors import InUse, NotFound, UnknownCursor
from trunkline.store.records import FileRecord, NewFile, Page
from trunkline.store.schema import batches, files
from trunkline.store.states import LIVE


def insert_file(connection: Connection, project_id: str, new: NewFile, now: int) -> FileRecord:
    """Create a file's row in a transaction that is under way."""
    record = FileRecord(
        id=new_id("file-"),
        project_id=project_id,
        filename=new.filename,
        purpose=new.purpose,
        num_bytes=new.blob.num_bytes,
        sha256=new.blob.sha256,
        blob_key=new.blob.key,
        created_at=now,
        expires_at=new.expires_at,
    )
    values = {column.name: getattr(record, column.name) for column in files.c}
    connection.execute(insert(files).values(values))
    return record


def _record(row: Row[Any]) -> FileRecord:
    return FileRecord(**row._mapping)


class Files:
    """Files of one project; those of others are not there.

    Their bytes are in the blob store, under `blob_key`.
    """

    def __init__(self, database: Database, project_id: str) -> None:
        self._database = database
        self._project_id = project_id

    def create(self, new: NewFile, now: int) -> FileRecord:
        with self._database.write() as connection:
            return insert_file(connection, self._project_id, new, now)

    def get(self, file_id: str) -> FileRecord:
        """The file.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as connection:
            row = connection.execute(select(files).where(self._is(file_id))).first()
        if row is None:
            raise NotFound("file", file_id)
        return _record(row)

    def list(
        self,
        purpose: str | None = None,
        limit: int = 10_000,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> Page[FileRecord]:
        """Files by creation time, beginning behind the file `after`.

        Raises:
            UnknownCursor: there is no file `after`.
        """
        place = tuple_(files.c.created_at, files.c.id)
        query = select(files).where(files.c.project_id == self._project_id)
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        with self._database.read() as connection:
            if after is not None:
                cursor = connection.execute(
                    select(files.c.created_at, files.c.id).where(self._is(after))
                ).first()
                if cursor is None:
                    raise UnknownCursor(after)
                here = tuple_(*cursor)
                query = query.where(place > here if order == "asc" else place < here)
            columns = (files.c.created_at, files.c.id)
            query = query.order_by(*(c.asc() if order == "asc" else c.desc() for c in columns))
            rows = connection.execute(query.limit(limit + 1)).all()
        return Page(tuple(map(_record, rows[:limit])), has_more=len(rows) > limit)

    def delete(self, file_id: str) -> FileRecord:
        """Remove the file's row; the caller deletes the blob.

        Raises:
            NotFound: there is no such file.
            InUse: a batch still needs it.
        """
        with self._database.write() as connection:
            # A batch that is being created holds the file: wait for it, then look for batches.
            connection.execute(select(files.c.id).where(self._is(file_id)).with_for_update())
            user = connection.execute(
                select(batches.c.id).where(
                    batches.c.input_file_id == file_id,
                    batches.c.project_id == self._project_id,
                    batches.c.status.in_(LIVE),
                )
            ).scalar()
            if user is not None:
                raise InUse(file_id, user)
            row = connection.execute(
                delete(files).where(self._is(file_id)).returning(*files.c)
            ).first()
        if row is None:
            raise NotFound("file", file_id)
        return _record(row)

    def _is(self, file_id: str) -> ColumnElement[bool]:
        return and_(files.c.id == file_id, files.c.project_id == self._project_id)


class FileExpiry:
    """The end of files, of whatever project."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take_expired(self, now: int, limit: int = 100) -> tuple[FileRecord, ...]:
        """Remove the rows of some files that have expired; the caller deletes the blobs.

        A file that a batch still needs is kept until the batch is through.
        """
        is_needed = exists().where(
            batches.c.input_file_id == files.c.id, batches.c.status.in_(LIVE)
        )
        due = select(files.c.id).where(files.c.expires_at <= now, ~is_needed).limit(limit)
        with self._database.write() as connection:
            # Locked first, and looked at again then: a batch may have been created meanwhile.
            ids = connection.execute(due.with_for_update(skip_locked=True)).scalars().all()
            rows = connection.execute(
                delete(files).where(files.c.id.in_(ids), ~is_needed).returning(*files.c)
            ).all()
        return tuple(map(_record, rows))
