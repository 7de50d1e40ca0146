"""Blobs as objects in S3 or in a store that speaks its protocol."""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, BinaryIO

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from trunkline.store.blobs import BlobsUnavailable, is_key
from trunkline.store.location import ObjectPlace
from trunkline.store.records import StoredBlob

MIB = 1024 * 1024

# A part of an upload: S3 takes none smaller, and 10,000 at most. While one is filled, others are on
# their way.
PART_BYTES = 5 * MIB
MAX_PARTS_ON_THE_WAY = 2

# What is written in small pieces is handed over in large ones: each time other threads get their
# turn, which takes longer than to copy.
HAND_OVER_BYTES = MIB

# How much is fetched at once: little where reading begins, since it may jump about, and twice as
# much whenever it has gone on.
FIRST_READ_BYTES = MIB // 4
MAX_READ_BYTES = 4 * MIB

# For one request, on a slow line; and for all tries of it, while a client of the API waits.
TIMEOUT_SECONDS = 60
MAX_RETRIES = 8
CHECK_TIMEOUT_SECONDS = 5


class ObjectBlobs:
    """Blobs as objects under a prefix of a bucket.

    A blob is one object, that appears when it is whole. Credentials, region and endpoint are those
    of the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION,
    AWS_ENDPOINT_URL) or of the machine's or container's role. What the role must be allowed:
    s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload, s3:ListBucket.
    """

    def __init__(self, place: ObjectPlace) -> None:
        self._place = place
        self._store = _connect(place, TIMEOUT_SECONDS, MAX_RETRIES)
        self._probe = _connect(place, CHECK_TIMEOUT_SECONDS, 0)

    def writer(self) -> ObjectBlobWriter:
        return ObjectBlobWriter(self._store, self._place, secrets.token_hex(16))

    def open(self, key: str) -> BinaryIO:
        with _clear_errors(self._place, key):
            try:
                num_bytes = obstore.head(self._store, key)["size"]
            except FileNotFoundError:
                # The answer to HEAD has no body, that would say if the bucket is missing too.
                num_bytes = obstore.get(self._store, key).meta["size"]
        raw = _RangeReader(self._store, self._place, key, num_bytes)
        return io.BufferedReader(raw, MAX_READ_BYTES)

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError), _clear_errors(self._place, key):
            obstore.delete(self._store, key)

    def sweep_temporary(self, older_than_seconds: float) -> int:  # noqa: ARG002  # see below
        """Nothing: S3 alone knows the parts that a killed writer left, and has a rule to delete
        them, AbortIncompleteMultipartUpload, which a bucket should have."""
        return 0

    def list_keys(self, older_than_seconds: float) -> Iterator[str]:
        limit = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        with _clear_errors(self._place):
            for page in obstore.list(self._store, chunk_size=1000):
                for found in page:
                    if found["last_modified"] < limit and is_key(found["path"]):
                        yield found["path"]

    def check(self) -> None:
        # HEAD would do for a blob, but not tell a missing bucket.
        with suppress(FileNotFoundError), _clear_errors(self._place, "check"):
            obstore.get(self._probe, "check")


class ObjectBlobWriter:
    """See `BlobWriter`. A small blob is one request, a larger one an upload in parts."""

    def __init__(self, store: S3Store, place: ObjectPlace, key: str) -> None:
        self.num_bytes = 0
        self._place = place
        self._key = key
        self._digest = hashlib.sha256()
        self._is_committed = False
        self._pieces = bytearray()  # written and not handed over yet
        self._upload = obstore.open_writer(
            store, key, buffer_size=PART_BYTES, max_concurrency=MAX_PARTS_ON_THE_WAY
        )

    def __enter__(self) -> ObjectBlobWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._is_committed:
            # An upload that is left with an error is aborted. If even that fails, the bucket's
            # rule for incomplete uploads is what is left.
            with suppress(BaseError, OSError):
                self._upload.__exit__(InterruptedError, None, None)

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        self.num_bytes += len(data)
        self._pieces += data
        if len(self._pieces) >= HAND_OVER_BYTES:
            self._hand_over()

    def _hand_over(self) -> None:
        pieces, self._pieces = self._pieces, bytearray()
        with _clear_errors(self._place):
            self._upload.write(pieces)

    def commit(self) -> StoredBlob:
        self._hand_over()
        with _clear_errors(self._place):
            # When a part has failed, the upload can be aborted here, and no more once it closes.
            self._upload.flush()
            self._upload.close()
        self._is_committed = True
        return StoredBlob(self._key, self.num_bytes, self._digest.hexdigest())


class _RangeReader(io.RawIOBase):
    """An object's bytes, fetched range by range.

    To be read through a buffer, which reads on and seeks within what it has. The ranges grow while
    reading goes on, or skips less than what would be fetched next. The library's own reader is not
    used: it forgets its buffer at each seek, and makes a request for every line of a batch.
    """

    def __init__(self, store: S3Store, place: ObjectPlace, key: str, num_bytes: int) -> None:
        super().__init__()
        self._store = store
        self._place = place
        self._key = key
        self._num_bytes = num_bytes
        self._position = 0
        self._next_bytes = FIRST_READ_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}
        position = origin[whence] + offset
        if position < 0:
            raise ValueError(f"cannot seek to {position}, before the beginning")
        if not 0 <= position - self._position <= self._next_bytes:
            self._next_bytes = FIRST_READ_BYTES
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        data = self._fetch(min(len(buffer), self._next_bytes))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        # That of the base class asks for a few kilobytes at once.
        return b"".join(iter(lambda: self._fetch(MAX_READ_BYTES), b""))

    def _fetch(self, max_bytes: int) -> memoryview:
        length = min(max_bytes, self._num_bytes - self._position)
        if length <= 0:
            return memoryview(b"")
        with _clear_errors(self._place, self._key):
            data = obstore.get_range(self._store, self._key, start=self._position, length=length)
        self._position += length
        self._next_bytes = min(2 * self._next_bytes, MAX_READ_BYTES)
        return memoryview(data)


def _connect(place: ObjectPlace, timeout_seconds: float, max_retries: int) -> S3Store:
    """Access to the objects below the place's prefix, with what the environment says of AWS."""
    with _clear_errors(place):
        return S3Store(
            place.bucket,
            prefix=place.prefix or None,
            client_options={
                # If the endpoint that is configured says so; the default one does not.
                "allow_http": True,
                "connect_timeout": timedelta(seconds=5),
                "timeout": timedelta(seconds=timeout_seconds),
                # S3 closes what is idle for longer.
                "pool_idle_timeout": timedelta(seconds=15),
            },
            # After 5xx, 429, and connections that break.
            retry_config={
                "max_retries": max_retries,
                "retry_timeout": timedelta(seconds=timeout_seconds),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=5),
                    "base": 2,
                },
            },
        )


@contextmanager
def _clear_errors(place: ObjectPlace, key: str | None = None) -> Iterator[None]:
    """Say in one line what went wrong.

    The library's messages repeat what was sent and received, in which there can be secrets.

    Raises:
        FileNotFoundError: there is no object `key`.
        BlobsUnavailable: all else.
    """
    try:
        yield
    except FileNotFoundError as error:
        if key is None or "NoSuchBucket" in str(error):
            raise _unavailable(place, error) from None
        raise FileNotFoundError(f"there is no blob {key} in {place}") from None
    except (BaseError, OSError, ValueError) as error:
        raise _unavailable(place, error) from None


def _unavailable(place: ObjectPlace, error: Exception) -> BlobsUnavailable:
    return BlobsUnavailable(f"{place} cannot be reached: {_reason(error)}")


def _reason(error: Exception) -> str:
    """What is safe to show of the library's error."""
    message = str(error)
    if re.search(r"/latest/(api/token|meta-data)", message):
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    status = re.search(r"status code: (\d{3})", message)
    if status is None:
        kind = re.search(r"kind: (Connect|Timeout|Request|Interrupted|Decode)\b", message)
        return f"{kind[1].lower()} error" if kind else type(error).__name__
    code = re.search(r"<Code>(\w+)</Code>", message)
    return f"HTTP status {status[1]}" + (f", {code[1]}" if code else "")
