"""The bytes of files."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

from trunkline.store.records import StoredBlob

TEMPORARY_SUFFIX = ".part"


class BlobsUnavailable(OSError):  # noqa: N818  # reads as what it says
    """The place of the blobs cannot be reached, or refuses. The message holds no secrets."""


class BlobWriter(Protocol):
    """Takes the bytes of a new blob; leaving the `with` without `commit` forgets them."""

    num_bytes: int

    def __enter__(self) -> BlobWriter: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def write(self, data: bytes) -> None:
        """Append `data`."""

    def commit(self) -> StoredBlob:
        """Make the blob durable. Nobody sees any of it before."""
        ...


class BlobStore(Protocol):
    """Where blobs are kept. May be used from any thread, each writer and each open blob from one.

    What fails with no fault of the caller's is an OSError: a full disk, BlobsUnavailable.
    """

    def writer(self) -> BlobWriter: ...

    def open(self, key: str) -> BinaryIO:
        """The bytes of a blob, seekable, buffered.

        Quick to be read on from wherever, or in small pieces in ascending order.

        Raises:
            FileNotFoundError: there is no such blob.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete a blob, if it is there."""

    def sweep_temporary(self, older_than_seconds: float) -> int:
        """Delete what interrupted writers left behind; how many there were."""
        ...

    def list_keys(self, older_than_seconds: float) -> Iterator[str]:
        """The keys of all blobs of at least this age. Passes over whatever is not a blob."""
        ...

    def check(self) -> None:
        """Is the place of the blobs there?

        Raises:
            BlobsUnavailable: it is not.
        """
        ...


def is_key(name: str) -> bool:
    """Whether `name` can be a blob's key."""
    return re.fullmatch("[0-9a-f]{32}", name) is not None


class DiskBlobs:
    """Blobs as files in a folder.

    A blob is written under a temporary name, synced, and renamed: under its own name it is whole,
    whenever the machine stops.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def writer(self) -> DiskBlobWriter:
        return DiskBlobWriter(self._path(secrets.token_hex(16)))

    def open(self, key: str) -> BinaryIO:
        return self._path(key).open("rb")

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def sweep_temporary(self, older_than_seconds: float) -> int:
        num_removed = 0
        for path in self._root.glob(f"*/*{TEMPORARY_SUFFIX}"):
            # Another server may sweep too, or the writer be through in this moment.
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - older_than_seconds:
                    path.unlink()
                    num_removed += 1
        return num_removed

    def list_keys(self, older_than_seconds: float) -> Iterator[str]:
        limit = time.time() - older_than_seconds
        for path in self._root.glob("??/*"):
            # It may be deleted in this moment.
            with suppress(FileNotFoundError):
                if is_key(path.name) and path.stat().st_mtime < limit:
                    yield path.name

    def check(self) -> None:
        if not self._root.is_dir():
            raise BlobsUnavailable(f"there is no folder {self._root}")
        if not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
            raise BlobsUnavailable(f"the folder {self._root} cannot be written to")

    def _path(self, key: str) -> Path:
        # Folders stay small when there are many blobs.
        return self._root / key[:2] / key


class DiskBlobWriter:
    """See `BlobWriter`."""

    def __init__(self, path: Path) -> None:
        self.num_bytes = 0
        self._path = path
        self._temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        self._digest = hashlib.sha256()
        path.parent.mkdir(exist_ok=True)
        self._file = self._temporary.open("xb")

    def __enter__(self) -> DiskBlobWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # On a full disk even closing fails: it writes out what is buffered, which nobody wants.
        with suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)

    def commit(self) -> StoredBlob:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.rename(self._path)
        _sync_folder(self._path.parent)
        _sync_folder(self._path.parent.parent)
        return StoredBlob(self._path.name, self.num_bytes, self._digest.hexdigest())


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
