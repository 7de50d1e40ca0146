"""What holds of blobs wherever they are."""

from __future__ import annotations

import hashlib
import io
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import psutil
import pytest

from trunkline.store.blobs import BlobStore, is_key
from trunkline.store.records import StoredBlob

MIB = 1024 * 1024
ANY_AGE = -60.0  # seconds: those that are written in this moment too


def store(blobs: BlobStore, *pieces: bytes) -> StoredBlob:
    with blobs.writer() as writer:
        for piece in pieces:
            writer.write(piece)
        return writer.commit()


def load(blobs: BlobStore, key: str) -> bytes:
    with blobs.open(key) as blob:
        return blob.read()


@pytest.mark.parametrize("pieces", [(), (b"",), (b"ab", b"", b"c"), (b"\0\xff\r\n",)])
def test_a_blob_is_what_was_written(blobs: BlobStore, pieces: tuple[bytes, ...]) -> None:
    stored = store(blobs, *pieces)
    whole = b"".join(pieces)
    assert is_key(stored.key)
    assert stored.num_bytes == len(whole)
    assert stored.sha256 == hashlib.sha256(whole).hexdigest()
    assert load(blobs, stored.key) == whole


def test_blobs_have_keys_of_their_own(blobs: BlobStore) -> None:
    first, second = store(blobs, b"same"), store(blobs, b"same")
    blobs.delete(first.key)
    assert load(blobs, second.key) == b"same"


@pytest.mark.parametrize("num_bytes", [0, 1000, 20 * MIB])
def test_a_writer_that_is_left_early_leaves_nothing(place: Any, num_bytes: int) -> None:
    data = bytes(num_bytes)
    with suppress(RuntimeError), place.blobs.writer() as writer:
        writer.write(data)
        raise RuntimeError
    with place.blobs.writer() as writer:
        writer.write(data)  # never committed
    assert place.contents() == set()


@pytest.mark.parametrize("num_bytes", [1000, 20 * MIB])
def test_nobody_sees_a_blob_before_it_is_committed(blobs: BlobStore, num_bytes: int) -> None:
    with blobs.writer() as writer:
        writer.write(bytes(num_bytes))
        assert list(blobs.list_keys(ANY_AGE)) == []
        stored = writer.commit()
        assert list(blobs.list_keys(ANY_AGE)) == [stored.key]
    assert list(blobs.list_keys(ANY_AGE)) == [stored.key]


def test_deleting_is_done_when_the_blob_is_gone(blobs: BlobStore) -> None:
    stored = store(blobs, b"x")
    blobs.delete(stored.key)
    blobs.delete(stored.key)
    with pytest.raises(FileNotFoundError, match=stored.key):
        blobs.open(stored.key)


def test_a_missing_blob_is_a_missing_file(blobs: BlobStore) -> None:
    key = "0123456789abcdef" * 2
    blobs.delete(key)
    with pytest.raises(FileNotFoundError, match=key):
        blobs.open(key)


def test_a_large_blob_needs_little_memory(blobs: BlobStore) -> None:
    piece = os.urandom(MIB)
    digest = hashlib.sha256()
    with memory_growth_below(40 * MIB):
        with blobs.writer() as writer:
            for _ in range(70):
                writer.write(piece)
                digest.update(piece)
            stored = writer.commit()
        assert (stored.num_bytes, stored.sha256) == (70 * MIB, digest.hexdigest())
        with blobs.open(stored.key) as blob:
            while data := blob.read(MIB):
                assert data == piece


@contextmanager
def memory_growth_below(limit: int) -> Iterator[None]:
    """What is done in it takes less than `limit` bytes more at any time."""
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    assert peak - before < limit, f"{(peak - before) / MIB:.0f} MiB"


def test_writers_do_not_disturb_each_other(blobs: BlobStore) -> None:
    def write(number: int) -> StoredBlob:
        return store(blobs, *[bytes([number]) * 1000] * (10_000 if number == 0 else 300))

    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(write, range(8)))
    assert sorted(blobs.list_keys(ANY_AGE)) == sorted(blob.key for blob in stored)
    for number, blob in enumerate(stored):
        assert set(load(blobs, blob.key)) == {number}


def test_a_blob_is_read_as_a_file(blobs: BlobStore) -> None:
    """Random reads and seeks, beside those of a file in memory."""
    chance = random.Random(1)
    lines = [chance.randbytes(chance.randrange(3000)).replace(b"\n", b"") for _ in range(2000)]
    whole = b"\n".join(lines)
    key = store(blobs, whole).key
    expected: BinaryIO = io.BytesIO(whole)
    with blobs.open(key) as blob:
        assert blob.seekable()
        for _ in range(400):
            kind = chance.randrange(5)
            if kind == 0:
                offset = chance.randrange(len(whole) + 1000)
                assert blob.seek(offset) == expected.seek(offset)
            elif kind == 1:
                offset = chance.randrange(100_000)
                assert blob.seek(offset, os.SEEK_CUR) == expected.seek(offset, os.SEEK_CUR)
            elif kind == 2:
                offset = -chance.randrange(len(whole))
                assert blob.seek(offset, os.SEEK_END) == expected.seek(offset, os.SEEK_END)
            elif kind == 3:
                size = chance.choice([0, 1, 5000, 700_000])
                assert blob.read(size) == expected.read(size)
            else:
                assert blob.readline() == expected.readline()
            assert blob.tell() == expected.tell()
        blob.seek(0)
        assert [line.rstrip(b"\n") for line in blob] == lines


def test_blobs_are_listed_by_age(blobs: BlobStore) -> None:
    keys = {store(blobs, b"x").key for _ in range(3)}
    assert set(blobs.list_keys(ANY_AGE)) == keys
    assert list(blobs.list_keys(3600)) == []


def test_sweeping_keeps_what_is_being_written(blobs: BlobStore) -> None:
    with blobs.writer() as writer:
        writer.write(b"x")
        assert blobs.sweep_temporary(3600) == 0
        stored = writer.commit()
    assert blobs.sweep_temporary(0) == 0
    assert load(blobs, stored.key) == b"x"


def test_a_store_that_is_there_is_there(blobs: BlobStore) -> None:
    blobs.check()
