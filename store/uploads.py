"""Files that arrive in parts: queries on uploads and their parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    func,
    insert,
    select,
    update,
)

from trunkline.store.blobs import BlobStore
from trunkline.store.database import Database, new_id
from trunkline.store.errors import NotFound, StoreError
from trunkline.store.files import insert_file
from trunkline.store.records import FileRecord, NewFile, StoredBlob
from trunkline.store.schema import upload_parts, uploads


class UploadStatus(StrEnum):
    """An upload's status, in the API's words. All but the first are final."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class NewUpload:
    """An upload to be created."""

    filename: str
    purpose: str
    mime_type: str
    num_bytes: int  # of the whole file, as announced
    file_expires_after_seconds: int | None


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """An upload."""

    id: str
    project_id: str
    filename: str
    purpose: str
    mime_type: str
    num_bytes: int
    status: UploadStatus
    created_at: int
    expires_at: int
    file_expires_after_seconds: int | None
    file_id: str | None
    part_ids_sha256: str | None  # of the parts that the file was made of; None: not completed

    def is_made_of(self, part_ids: Sequence[str]) -> bool:
        """Whether it was completed with these parts in this order."""
        return self.part_ids_sha256 == _digest(part_ids)


@dataclass(frozen=True, slots=True)
class UploadPart:
    """Some of an upload's bytes."""

    id: str
    upload_id: str
    blob_key: str
    num_bytes: int
    created_at: int


@dataclass(frozen=True, slots=True)
class PartLimits:
    """How much an upload may hold. It may be more than its file will: a part that a client sends
    again, because the reply was lost, is another part."""

    max_parts: int
    max_bytes: int


class UploadClosed(StoreError):  # noqa: N818  # reads as what it says
    """The upload is not pending any more."""

    def __init__(self, upload_id: str, status: UploadStatus) -> None:
        super().__init__(f"upload {upload_id} is {status}")
        self.upload_id = upload_id
        self.status = status


class UploadFull(StoreError):  # noqa: N818
    """The upload has no room for one more part."""

    def __init__(self, upload_id: str, reason: str) -> None:
        super().__init__(f"upload {upload_id} {reason}")
        self.reason = reason  # goes on from "The upload"


class Uploads:
    """Uploads of one project; those of others are not there.

    The bytes of parts are in the blob store; their rows and blobs are deleted by `UploadSweep`.
    """

    def __init__(self, database: Database, project_id: str) -> None:
        self._database = database
        self._project_id = project_id

    def create(self, new: NewUpload, now: int, expires_at: int) -> UploadRecord:
        record = UploadRecord(
            **asdict(new),
            id=new_id("upload_"),
            project_id=self._project_id,
            status=UploadStatus.PENDING,
            created_at=now,
            expires_at=expires_at,
            file_id=None,
            part_ids_sha256=None,
        )
        with self._database.write() as connection:
            connection.execute(insert(uploads).values(asdict(record)))
        return record

    def get(self, upload_id: str, now: int) -> UploadRecord:
        """The upload as it is at `now`: expired on time, whether or not its row says so yet.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as connection:
            return self._get(connection, upload_id, now)

    def parts(self, upload_id: str) -> dict[str, UploadPart]:
        """The parts of an upload by id; none when it has ended, or is not there."""
        query = select(upload_parts).join(uploads).where(self._is(upload_id))
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {row.id: UploadPart(**row._mapping) for row in rows}

    def add_part(
        self, upload_id: str, blob: StoredBlob, limits: PartLimits, now: int
    ) -> UploadPart:
        """Add a part, whose bytes are in `blob`; unless it is added, the caller deletes the blob.

        Raises:
            NotFound: there is no such upload.
            UploadClosed: it is not pending.
            UploadFull: it has too much already.
        """
        part = UploadPart(new_id("part_"), upload_id, blob.key, blob.num_bytes, now)
        with self._database.write() as connection:
            # Locked: parts that arrive at the same time are counted one after the other, and none
            # is added to an upload that is being ended.
            self._open(connection, upload_id, now)
            num_parts, num_bytes = connection.execute(
                select(func.count(), func.coalesce(func.sum(upload_parts.c.num_bytes), 0)).where(
                    upload_parts.c.upload_id == upload_id
                )
            ).one()
            if num_parts >= limits.max_parts:
                raise UploadFull(
                    upload_id, f"has {num_parts} parts; at most {limits.max_parts} are allowed."
                )
            # PostgreSQL sums up to a Decimal.
            if (total := int(num_bytes) + part.num_bytes) > limits.max_bytes:
                raise UploadFull(
                    upload_id,
                    f"would hold {total} bytes with this part; at most {limits.max_bytes} are "
                    "allowed.",
                )
            connection.execute(insert(upload_parts).values(asdict(part)))
        return part

    def complete(
        self, upload_id: str, part_ids: Sequence[str], new: NewFile, now: int
    ) -> tuple[UploadRecord, FileRecord]:
        """Make the file that consists of these parts; unless it is made, the caller deletes its
        blob.

        Raises:
            NotFound: there is no such upload.
            UploadClosed: it is not pending.
        """
        with self._database.write() as connection:
            upload = self._open(connection, upload_id, now)
            file = insert_file(connection, self._project_id, new, now)
            upload = replace(
                upload,
                status=UploadStatus.COMPLETED,
                file_id=file.id,
                part_ids_sha256=_digest(part_ids),
            )
            self._end(connection, upload)
        return upload, file

    def cancel(self, upload_id: str, now: int) -> UploadRecord:
        """Cancel the upload; one that is cancelled already stays as it is.

        Raises:
            NotFound: there is no such upload.
            UploadClosed: it is completed or expired.
        """
        with self._database.write() as connection:
            try:
                upload = self._open(connection, upload_id, now)
            except UploadClosed as closed:
                if closed.status is not UploadStatus.CANCELLED:
                    raise
                return self._get(connection, upload_id, now)
            upload = replace(upload, status=UploadStatus.CANCELLED)
            self._end(connection, upload)
        return upload

    def _open(self, connection: Connection, upload_id: str, now: int) -> UploadRecord:
        """The upload, pending and locked until the end of the transaction."""
        upload = self._get(connection, upload_id, now, lock=True)
        if upload.status is not UploadStatus.PENDING:
            raise UploadClosed(upload_id, upload.status)
        return upload

    def _get(
        self, connection: Connection, upload_id: str, now: int, *, lock: bool = False
    ) -> UploadRecord:
        query = select(uploads).where(self._is(upload_id))
        row = connection.execute(query.with_for_update() if lock else query).first()
        if row is None:
            raise NotFound("upload", upload_id)
        return _record(row, now)

    def _end(self, connection: Connection, ended: UploadRecord) -> None:
        connection.execute(
            update(uploads)
            .where(uploads.c.id == ended.id, uploads.c.status == UploadStatus.PENDING)
            .values(
                status=ended.status,
                file_id=ended.file_id,
                part_ids_sha256=ended.part_ids_sha256,
            )
        )

    def _is(self, upload_id: str) -> ColumnElement[bool]:
        return and_(uploads.c.id == upload_id, uploads.c.project_id == self._project_id)


class UploadSweep:
    """The end of uploads, of whatever project, and of their parts."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs

    def run(self, now: int) -> int:
        """End what is due, delete what ended uploads have left; how many have expired."""
        num_expired = self.expire_due(now)
        self.delete_parts()
        return num_expired

    def expire_due(self, now: int) -> int:
        """Mark the uploads whose time is over; how many there were."""
        with self._database.write() as connection:
            return connection.execute(
                update(uploads)
                .where(uploads.c.status == UploadStatus.PENDING, uploads.c.expires_at <= now)
                .values(status=UploadStatus.EXPIRED)
            ).rowcount

    def delete_parts(self, upload_id: str | None = None, chunk: int = 100) -> int:
        """Delete the parts of an upload that has ended, or of all; how many there were.

        Blobs go first, so that an interruption leaves rows, from which the next call goes on.
        """
        query = (
            select(upload_parts.c.id, upload_parts.c.blob_key)
            .join(uploads)
            .where(uploads.c.status != UploadStatus.PENDING)
            .limit(chunk)
        )
        if upload_id is not None:
            query = query.where(uploads.c.id == upload_id)
        num_deleted = 0
        while True:
            with self._database.read() as connection:
                rows = connection.execute(query).all()
            if not rows:
                return num_deleted
            for row in rows:
                self._blobs.delete(row.blob_key)
            with self._database.write() as connection:
                ids = [row.id for row in rows]
                connection.execute(delete(upload_parts).where(upload_parts.c.id.in_(ids)))
            num_deleted += len(rows)


def _record(row: Row[Any], now: int) -> UploadRecord:
    values = dict(row._mapping)
    status = UploadStatus(values["status"])
    if status is UploadStatus.PENDING and row.expires_at <= now:
        status = UploadStatus.EXPIRED
    return UploadRecord(**values | {"status": status})


def _digest(part_ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(part_ids).encode()).hexdigest()
