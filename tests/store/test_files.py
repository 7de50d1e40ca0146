"""Files and their bytes."""

from __future__ import annotations

import hashlib
import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from trunkline.store.blobs import DiskBlobs
from trunkline.store.errors import InUse, NotFound, UnknownCursor

NOW = 1_000_000


def test_create_get_delete(store: Any) -> None:
    created = store.file(b"hello", expires_at=NOW + 5)
    assert store.files.get(created.id) == created
    assert created.sha256 == hashlib.sha256(b"hello").hexdigest()
    with store.blobs.open(created.blob_key) as blob:
        assert blob.read() == b"hello"
    assert store.files.delete(created.id) == created
    for query in (store.files.get, store.files.delete):
        with pytest.raises(NotFound):
            query(created.id)


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_lists_go_on_behind_the_cursor(store: Any, order: str) -> None:
    ids = [store.file(now=NOW + i // 3).id for i in range(10)]
    seen, after = [], None
    while True:
        page = store.files.list(limit=4, order=order, after=after)
        seen += [file.id for file in page.items]
        if not page.has_more:
            break
        after = page.items[-1].id
    assert seen == (ids if order == "asc" else ids[::-1])
    assert store.files.list(purpose="batch_output").items == ()
    assert len(store.files.list(purpose="batch").items) == 10
    with pytest.raises(UnknownCursor):
        store.files.list(after="file-nope")


def test_an_input_file_is_kept_while_its_batch_needs_it(store: Any) -> None:
    batch = store.validating()
    with pytest.raises(InUse, match=batch.id):
        store.files.delete(batch.input_file_id)
    claim = store.closing.claim("server", NOW, 60)
    store.closing.reject(claim, [], NOW)
    store.files.delete(batch.input_file_id)


def test_expired_files_are_taken_unless_they_are_needed(store: Any) -> None:
    store.file()
    expired = store.file(expires_at=NOW + 5)
    store.file(expires_at=NOW + 6)
    assert store.expiry.take_expired(NOW + 4) == ()
    assert store.expiry.take_expired(NOW + 5) == (expired,)
    assert store.expiry.take_expired(NOW + 5) == ()


def test_a_writer_that_is_left_early_leaves_nothing(tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path)
    writer = blobs.writer()
    with suppress(RuntimeError), writer:
        writer.write(b"half")
        raise RuntimeError
    with blobs.writer() as writer:
        writer.write(b"never committed")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with blobs.writer() as writer:
            writer.write(bytes(5000))  # buffered: it is the commit that fails
            with pytest.raises(OSError, match="too large"):
                writer.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_blob_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path)
    with blobs.writer() as writer:
        writer.write(b"ab")
        writer.write(b"c")
        (partial,) = (path for path in tmp_path.rglob("*") if path.is_file())
        stored = writer.commit()
    assert partial.name == stored.key + ".part"
    assert stored.num_bytes == 3
    with blobs.open(stored.key) as blob:
        assert blob.read() == b"abc"
    blobs.delete(stored.key)
    blobs.delete(stored.key)
    with pytest.raises(FileNotFoundError):
        blobs.open(stored.key)


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path)
    folder = tmp_path / "ab"
    folder.mkdir()
    for name, age in (("abandoned.part", 1000), ("fresh.part", 0), ("whole", 1000)):
        path = folder / name
        path.touch()
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    assert blobs.sweep_temporary(older_than_seconds=500) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["fresh.part", "whole"]
