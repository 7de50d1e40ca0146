"""Blobs that no row refers to."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from trunkline.store.blobs import BlobStore, DiskBlobs
from trunkline.store.database import Database
from trunkline.store.files import Files
from trunkline.store.orphans import INTERVAL_SECONDS, OrphanSweep
from trunkline.store.projects import DEFAULT_PROJECT_ID
from trunkline.store.records import NewFile, StoredBlob
from trunkline.store.schema import upload_parts, uploads

NOW = 1_000_000
ANY_AGE = -60.0


def store(blobs: BlobStore) -> StoredBlob:
    with blobs.writer() as writer:
        writer.write(b"x")
        return writer.commit()


def add_file(database: Database, blob: StoredBlob) -> None:
    Files(database, DEFAULT_PROJECT_ID).create(NewFile("a.jsonl", "batch", blob, None), NOW)


def add_part(database: Database, blob: StoredBlob) -> None:
    values = {"filename": "a", "purpose": "batch", "mime_type": "", "num_bytes": 1}
    with database.write() as connection:
        connection.execute(
            insert(uploads).values(
                id="upload_1",
                project_id=DEFAULT_PROJECT_ID,
                status="pending",
                created_at=NOW,
                expires_at=NOW,
                **values,
            )
        )
        connection.execute(
            insert(upload_parts).values(
                id="part_1", upload_id="upload_1", blob_key=blob.key, num_bytes=1, created_at=NOW
            )
        )


def test_blobs_of_files_and_of_parts_are_kept(database: Database, blobs: BlobStore) -> None:
    of_file, of_part, *_ = [store(blobs) for _ in range(4)]
    add_file(database, of_file)
    add_part(database, of_part)
    sweep = OrphanSweep(database, blobs, min_age_seconds=ANY_AGE)
    assert sweep.run() == 2
    assert set(blobs.list_keys(ANY_AGE)) == {of_file.key, of_part.key}
    assert sweep.run() == 0


def test_young_blobs_may_still_get_a_row(database: Database, tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path / "blobs")
    of_file, old, young = (store(blobs) for _ in range(3))
    add_file(database, of_file)
    for key, hours in ((of_file.key, 100), (old.key, 25), (young.key, 23)):
        (path,) = tmp_path.rglob(key)
        os.utime(path, (0, path.stat().st_mtime - hours * 3600))
    assert OrphanSweep(database, blobs).run() == 1
    assert set(blobs.list_keys(ANY_AGE)) == {of_file.key, young.key}


def test_nothing_is_deleted_for_a_database_that_knows_none(
    database: Database, blobs: BlobStore, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {store(blobs).key for _ in range(3)}
    with caplog.at_level(logging.WARNING):
        assert OrphanSweep(database, blobs, min_age_seconds=ANY_AGE).run() == 0
    assert "3 blobs, and the database knows none of them" in caplog.text
    assert set(blobs.list_keys(ANY_AGE)) == keys


def test_more_blobs_than_are_asked_for_at_once(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.store.orphans.CHUNK_KEYS", 2)
    blobs = DiskBlobs(tmp_path / "blobs")
    for number in range(9):
        blob = store(blobs)
        if number % 3:
            add_file(database, blob)
    assert OrphanSweep(database, blobs, min_age_seconds=ANY_AGE).run() == 3
    assert len(list(blobs.list_keys(ANY_AGE))) == 6


def test_going_through_all_blobs_is_not_done_too_often(tmp_path: Path, database: Database) -> None:
    class CountingBlobs(DiskBlobs):
        num_listed = 0

        def list_keys(self, older_than_seconds: float) -> Any:
            self.num_listed += 1
            return super().list_keys(older_than_seconds)

    blobs = CountingBlobs(tmp_path / "blobs")
    sweep = OrphanSweep(database, blobs)
    for now in (NOW, NOW + 1, NOW + INTERVAL_SECONDS - 1, NOW + INTERVAL_SECONDS):
        assert sweep.run_when_due(now) == 0
    assert blobs.num_listed == 2
