"""An input file that ends when the test says so: whoever validates it is held in the middle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from openai.types import Batch
from sqlalchemy import select

from tests.server.live_server import CHAT, HANG_SECONDS
from tests.support import wait_for
from trunkline.store.schema import files

# What a pipe takes without anybody reading.
MAX_BYTES = 32_768


class HeldInput:
    """A batch on a server whose blobs are on the disk; a pipe is in the place of its input.

    Attributes:
        batch: it has been created, and is being validated.
    """

    def __init__(self, server: Any, content: bytes) -> None:
        assert len(content) < MAX_BYTES
        file = server.upload(content)
        with server.database.read() as connection:
            key: str = connection.execute(
                select(files.c.blob_key).where(files.c.id == file.id)
            ).scalar_one()
        self._path = server.data_dir / "blobs" / key[:2] / key
        self._kept = self._path.with_suffix(".kept")
        self._path.rename(self._kept)
        os.mkfifo(self._path)
        self.batch: Batch = server.client.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h"
        )
        self._pipe = wait_for(self._open, HANG_SECONDS)
        self._rest = content[len(content) // 2 :]
        os.write(self._pipe, content[: len(content) // 2])

    def _open(self) -> int | None:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody has opened it for reading yet
            return None

    def go_on(self) -> None:
        """Give the reader the rest."""
        os.write(self._pipe, self._rest)
        os.close(self._pipe)
        self._pipe = -1

    def restore(self) -> None:
        """Whoever reads it from now on finds the file as it was uploaded."""
        self._kept.replace(self._path)

    def close(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)


@contextmanager
def held_input(server: Any, content: bytes) -> Iterator[HeldInput]:
    """A batch with this input that is in the middle of its validation."""
    held = HeldInput(server, content)
    try:
        yield held
    finally:
        held.close()
