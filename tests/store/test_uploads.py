"""Uploads in parts: what may be added when, who ends one, and what is left of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from trunkline.store.database import Database
from trunkline.store.errors import NotFound
from trunkline.store.projects import DEFAULT_PROJECT_ID, Projects
from trunkline.store.records import NewFile, StoredBlob
from trunkline.store.schema import files, upload_parts
from trunkline.store.uploads import (
    NewUpload,
    PartLimits,
    UploadClosed,
    UploadFull,
    UploadPart,
    UploadRecord,
    Uploads,
    UploadStatus,
    UploadSweep,
)

NOW = 1_000_000
EXPIRES_AT = NOW + 3600
LIMITS = PartLimits(max_parts=100, max_bytes=1000)


class Bench:
    """The uploads of one project, and shorthands."""

    def __init__(self, store: Any, folder: Path) -> None:
        self.store = store
        self.uploads = Uploads(store.database, DEFAULT_PROJECT_ID)
        self.sweep = UploadSweep(store.database, store.blobs)
        self._folder = folder

    def create(self, num_bytes: int = 6) -> UploadRecord:
        new = NewUpload("in.jsonl", "batch", "application/jsonl", num_bytes, None)
        return self.uploads.create(new, NOW, EXPIRES_AT)

    def blob(self, data: bytes) -> StoredBlob:
        blob: StoredBlob = self.store.blob(data).blob
        return blob

    def add(
        self, upload: UploadRecord, data: bytes = b"abc", limits: PartLimits = LIMITS
    ) -> UploadPart:
        return self.uploads.add_part(upload.id, self.blob(data), limits, NOW + 1)

    def complete(self, upload: UploadRecord, part_ids: list[str], now: int = NOW + 2) -> Any:
        new = NewFile(upload.filename, upload.purpose, self.blob(b"abcabc"), None)
        return self.uploads.complete(upload.id, part_ids, new, now)

    def blobs(self) -> set[str]:
        return {path.name for path in self._folder.rglob("*") if path.is_file()}

    def count(self, table: Any) -> int:
        with self.store.database.read() as connection:
            num_rows: int = connection.execute(select(func.count()).select_from(table)).scalar_one()
        return num_rows


@pytest.fixture
def bench(store: Any, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path / "blobs")


@pytest.fixture
def other(database_url: str) -> Iterator[Uploads]:
    """The same uploads, as another server has them."""
    with closing(Database.open(database_url)) as database:
        yield Uploads(database, DEFAULT_PROJECT_ID)


def run_at_once(functions: Iterable[Callable[[], None]]) -> None:
    failures: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_an_upload_becomes_a_file(bench: Bench) -> None:
    upload = bench.create()
    assert upload.status is UploadStatus.PENDING
    assert bench.uploads.get(upload.id, NOW) == upload
    parts = [bench.add(upload), bench.add(upload)]
    assert bench.uploads.parts(upload.id) == {part.id: part for part in parts}
    part_ids = [part.id for part in parts]
    completed, file = bench.complete(upload, part_ids)
    assert completed.status is UploadStatus.COMPLETED
    assert completed.file_id == file.id
    assert bench.uploads.get(upload.id, NOW) == completed
    assert bench.store.files.get(file.id) == file
    assert (file.project_id, file.num_bytes, file.created_at) == (DEFAULT_PROJECT_ID, 6, NOW + 2)
    assert completed.is_made_of(part_ids)
    assert not completed.is_made_of(part_ids[::-1])
    assert not completed.is_made_of(part_ids[:1])
    assert not upload.is_made_of([])


def test_another_project_sees_nothing(bench: Bench) -> None:
    upload = bench.create()
    bench.add(upload)
    stranger = Uploads(bench.store.database, Projects(bench.store.database).ensure("b", NOW).id)
    new = NewFile("in.jsonl", "batch", bench.blob(b"x"), None)
    for call in (
        lambda: stranger.get(upload.id, NOW),
        lambda: stranger.add_part(upload.id, new.blob, LIMITS, NOW),
        lambda: stranger.complete(upload.id, [], new, NOW),
        lambda: stranger.cancel(upload.id, NOW),
    ):
        with pytest.raises(NotFound) as caught:
            call()
        assert (caught.value.kind, caught.value.id) == ("upload", upload.id)
    assert stranger.parts(upload.id) == {}
    assert bench.uploads.get(upload.id, NOW) == upload
    assert bench.count(files) == 0
    assert bench.count(upload_parts) == 1


@pytest.mark.parametrize("end", ["completed", "cancelled", "expired"])
def test_an_upload_that_has_ended_stays_as_it_is(bench: Bench, end: str) -> None:
    upload = bench.create(0)
    if end == "completed":
        bench.complete(upload, [])
    elif end == "cancelled":
        bench.uploads.cancel(upload.id, NOW)
    now = EXPIRES_AT if end == "expired" else NOW  # nobody has marked it yet
    ended = bench.uploads.get(upload.id, now)
    num_files = bench.count(files)
    assert ended.status == end
    new = NewFile("in.jsonl", "batch", bench.blob(b"x"), None)
    for call in (
        lambda: bench.uploads.add_part(upload.id, new.blob, LIMITS, now),
        lambda: bench.uploads.complete(upload.id, [], new, now),
        lambda: bench.uploads.cancel(upload.id, now),
    ):
        with suppress(UploadClosed):
            assert call() == ended
            assert end == "cancelled"  # cancelling again is the only thing that may be done
    with pytest.raises(UploadClosed) as caught:
        bench.complete(upload, [], now)
    assert caught.value.status == end
    assert bench.uploads.get(upload.id, now) == ended
    assert (bench.count(files), bench.count(upload_parts)) == (num_files, 0)


def test_parts_have_limits(bench: Bench) -> None:
    upload = bench.create()
    limits = PartLimits(max_parts=3, max_bytes=8)
    bench.add(upload, b"abcd", limits)
    with pytest.raises(UploadFull) as caught:
        bench.add(upload, b"abcde", limits)
    assert caught.value.reason == "would hold 9 bytes with this part; at most 8 are allowed."
    bench.add(upload, b"abcd", limits)
    bench.add(upload, b"", limits)
    with pytest.raises(UploadFull) as caught:
        bench.add(upload, b"", limits)
    assert caught.value.reason == "has 3 parts; at most 3 are allowed."


def test_the_sweep_expires_what_is_due(bench: Bench) -> None:
    early, completed, cancelled = (bench.create(0) for _ in range(3))
    late = bench.uploads.create(NewUpload("a", "evals", "b", 0, None), NOW, EXPIRES_AT + 1)
    bench.complete(completed, [])
    bench.uploads.cancel(cancelled.id, NOW)
    assert bench.sweep.run(EXPIRES_AT - 1) == 0
    assert bench.sweep.run(EXPIRES_AT) == 1
    assert bench.sweep.run(EXPIRES_AT) == 0
    statuses = [
        bench.uploads.get(upload.id, NOW).status for upload in (early, completed, cancelled, late)
    ]
    assert statuses == ["expired", "completed", "cancelled", "pending"]


def test_the_sweep_deletes_parts_of_ended_uploads_only(bench: Bench) -> None:
    pending, cancelled, completed = (bench.create() for _ in range(3))
    kept = bench.add(pending)
    for _ in range(5):
        bench.add(cancelled)
        bench.add(completed)
    bench.uploads.cancel(cancelled.id, NOW)
    _, file = bench.complete(completed, [])
    assert bench.sweep.delete_parts(cancelled.id) == 5
    assert bench.sweep.delete_parts(pending.id) == 0
    assert bench.sweep.delete_parts(chunk=2) == 5
    assert bench.sweep.delete_parts() == 0
    assert bench.uploads.parts(pending.id) == {kept.id: kept}
    assert bench.count(upload_parts) == 1
    assert bench.blobs() == {kept.blob_key, file.blob_key}


def test_a_sweep_that_was_interrupted_is_ended_by_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = bench.create()
    for _ in range(5):
        bench.add(upload)
    bench.uploads.cancel(upload.id, NOW)
    delete = bench.store.blobs.delete
    deleted: list[str] = []

    def delete_three(key: str) -> None:
        if len(deleted) == 3:
            raise KeyboardInterrupt
        deleted.append(key)
        delete(key)

    with monkeypatch.context() as patch:
        patch.setattr(bench.store.blobs, "delete", delete_three)
        with pytest.raises(KeyboardInterrupt):
            bench.sweep.run(NOW)
    assert len(bench.blobs()) == 2
    bench.sweep.run(NOW)
    assert bench.blobs() == set()
    assert bench.count(upload_parts) == 0


def test_one_of_two_ends_wins(bench: Bench, other: Uploads) -> None:
    for _ in range(20):
        upload = bench.create(0)
        ended: list[str] = []

        def complete(upload: UploadRecord = upload, ended: list[str] = ended) -> None:
            with suppress(UploadClosed):
                bench.complete(upload, [])
                ended.append("completed")

        def complete_elsewhere(upload: UploadRecord = upload, ended: list[str] = ended) -> None:
            new = NewFile("in.jsonl", "batch", bench.blob(b""), None)
            with suppress(UploadClosed):
                other.complete(upload.id, [], new, NOW)
                ended.append("completed")

        def cancel(upload: UploadRecord = upload, ended: list[str] = ended) -> None:
            with suppress(UploadClosed):
                other.cancel(upload.id, NOW)
                ended.append("cancelled")

        num_files = bench.count(files)
        run_at_once([complete, complete_elsewhere, cancel])
        assert ended == [bench.uploads.get(upload.id, NOW).status]
        assert bench.count(files) - num_files == (ended == ["completed"])


def test_parts_from_many_sides_never_exceed_the_limits(bench: Bench, other: Uploads) -> None:
    upload = bench.create()
    limits = PartLimits(max_parts=8, max_bytes=30)
    added: list[str] = []

    def add(uploads: Uploads, data: bytes) -> None:
        for _ in range(4):
            with suppress(UploadFull):
                added.append(uploads.add_part(upload.id, bench.blob(data), limits, NOW).id)

    sides = [(bench.uploads, b""), (other, b"abcd"), (bench.uploads, b"abcde"), (other, b"")]
    run_at_once(partial(add, *side) for side in sides)
    parts = bench.uploads.parts(upload.id)
    assert set(parts) == set(added)
    assert len(parts) == limits.max_parts
    assert sum(part.num_bytes for part in parts.values()) <= limits.max_bytes


def test_no_part_is_added_to_an_upload_that_is_being_cancelled(
    bench: Bench, other: Uploads
) -> None:
    for _ in range(20):
        upload = bench.create()

        def add(upload: UploadRecord = upload) -> None:
            blob = bench.blob(b"abc")
            try:
                other.add_part(upload.id, blob, LIMITS, NOW)
            except UploadClosed:
                bench.store.blobs.delete(blob.key)

        def cancel(upload: UploadRecord = upload) -> None:
            bench.uploads.cancel(upload.id, NOW)
            bench.sweep.delete_parts(upload.id)

        run_at_once([add, cancel])
        assert bench.uploads.parts(upload.id) == {}
    assert bench.count(upload_parts) == 0
    assert bench.blobs() == set()
