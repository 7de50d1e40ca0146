"""A batch file on its way to the server: checked first, then sent whole or in parts."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trunkline.server.client.api import Api
from trunkline.server.client.errors import ClientError, WrongUse
from trunkline.store.batch_file import LineChecker, iterate_lines

MIB = 1024 * 1024
# Larger files are sent in parts, so that a lost connection costs one part.
MAX_WHOLE_BYTES = 100 * MIB
# The API takes parts of up to 64 MB.
PART_BYTES = 32 * MIB

# Told how many bytes are done by now.
OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A batch file that a server will take, as far as that can be told from here."""

    num_lines: int
    num_bytes: int
    endpoint: str


def open_regular(path: Path) -> BinaryIO:
    """A file that can be read twice.

    Raises:
        WrongUse: there is none.
    """
    try:
        # A pipe without a writer would hold up the opening.
        if not stat.S_ISREG(path.stat().st_mode):
            raise WrongUse(f"{path} is not a regular file; give a batch file, JSONL")
        return path.open("rb")
    except OSError as error:
        raise WrongUse(f"{path} cannot be read: {error.strerror}") from None


def check_file(file: BinaryIO, name: str, endpoint: str | None, on_bytes: OnBytes) -> CheckedFile:
    """Check a batch file line by line; leaves it at its start.

    Args:
        file: is at its start.
        name: of the file, for the error.
        endpoint: that all lines must ask for; None means the first line's.
        on_bytes: told of the progress.

    Raises:
        WrongUse: names the first bad line.
    """
    checker = LineChecker(endpoint, models=None)
    num_lines = 0
    found = endpoint
    for number, offset, raw in iterate_lines(file):
        line = checker.check(number, offset, raw)
        if line is None:
            error = checker.errors[0]
            asked = f" (the batch's endpoint is {found})" if error.code == "invalid_url" else ""
            raise WrongUse(f"{name}, line {number}: {error.message}{asked} Nothing was sent.")
        num_lines += 1
        found = line.url
        on_bytes(offset + line.num_bytes)
    if found is None or not num_lines:
        raise WrongUse(f"{name} has no requests: a batch file has one JSON object on each line")
    num_bytes = file.seek(0, os.SEEK_END)
    on_bytes(num_bytes)
    file.seek(0)
    return CheckedFile(num_lines, num_bytes, found)


def send_file(api: Api, file: BinaryIO, filename: str, num_bytes: int, on_bytes: OnBytes) -> str:
    """Upload a batch file; its id. An upload that does not come to its end leaves nothing."""
    if num_bytes <= MAX_WHOLE_BYTES:
        return api.upload_file(filename, Slice(file, 0, num_bytes, on_bytes))
    upload_id = api.create_upload(filename, num_bytes)
    try:
        part_ids = [
            api.add_part(
                upload_id, Slice(file, start, min(PART_BYTES, num_bytes - start), on_bytes)
            )
            for start in range(0, num_bytes, PART_BYTES)
        ]
        return api.complete_upload(upload_id, part_ids)
    except BaseException:
        with suppress(ClientError):
            api.cancel_upload(upload_id)
        raise


class Slice(io.RawIOBase, BinaryIO):
    """Some bytes of a file as a file of their own, which tells how far it is read."""

    def __init__(self, file: BinaryIO, start: int, num_bytes: int, on_bytes: OnBytes) -> None:
        super().__init__()
        self._file = file
        self._start = start
        self._num_bytes = num_bytes
        self._position = 0
        self._on_bytes = on_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = self._num_bytes - self._position
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted <= 0:
            return b""
        self._file.seek(self._start + self._position)
        data = self._file.read(wanted)
        if len(data) < wanted:
            raise WrongUse("the file became shorter while it was sent; nothing was submitted")
        self._position += len(data)
        self._on_bytes(self._start + self._position)
        return data
