"""A store with a batch in it, at any point of its life."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from trunkline.store.batches import Batches
from trunkline.store.blobs import DiskBlobs
from trunkline.store.closing import Closing
from trunkline.store.database import Database
from trunkline.store.engines import Engines
from trunkline.store.files import FileExpiry, Files
from trunkline.store.outcomes import Outcomes
from trunkline.store.progress import Progress
from trunkline.store.projects import DEFAULT_PROJECT_ID
from trunkline.store.records import (
    BatchRecord,
    Claim,
    FileRecord,
    NewBatch,
    NewFile,
    NewRequest,
    Outcome,
)
from trunkline.store.work import Work

NOW = 1_000_000
MODEL = "tiny"


class Store:
    """All repositories on one database, and shorthands for the way of a batch."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.blobs = DiskBlobs(folder)
        self.files = Files(database, DEFAULT_PROJECT_ID)
        self.batches = Batches(database, DEFAULT_PROJECT_ID)
        self.outcomes = Outcomes(database)
        self.expiry = FileExpiry(database)
        self.progress = Progress(database)
        self.closing = Closing(database)
        self.work = Work(database, self.blobs)
        self.engines = Engines(database)

    def blob(self, data: bytes = b"x") -> NewFile:
        with self.blobs.writer() as writer:
            writer.write(data)
            return NewFile("in.jsonl", "batch", writer.commit(), None)

    def file(self, data: bytes = b"x", expires_at: int | None = None, now: int = NOW) -> FileRecord:
        new = self.blob(data)
        return self.files.create(NewFile(new.filename, new.purpose, new.blob, expires_at), now)

    def validating(self, num_lines: int = 4, expires_at: int = NOW + 86_400) -> BatchRecord:
        """A new batch whose input has `num_lines` lines."""
        data = b"".join(line + b"\n" for line in self._lines(num_lines))
        new = NewBatch("/v1/completions", self.file(data).id, "24h", expires_at, {"a": "b"}, None)
        return self.batches.create(new, NOW)

    def _lines(self, count: int) -> Iterable[bytes]:
        for i in range(1, count + 1):
            yield json.dumps({"custom_id": f"r{i}", "body": {"prompt": f"é{i}"}}).encode()

    def accepted(self, num_lines: int = 4, expires_at: int = NOW + 86_400) -> BatchRecord:
        """A batch in progress."""
        batch = self.validating(num_lines, expires_at)
        claim = self.closing.claim("server", NOW, 60)
        assert claim is not None
        requests, offset = [], 0
        for i, line in enumerate(self._lines(num_lines), start=1):
            requests.append(NewRequest(i, f"r{i}", offset, len(line)))
            offset += len(line) + 1
        self.closing.accept(claim, requests, MODEL, 0, NOW + 1)
        return self.batches.get(batch.id)

    def claimed(self, num_lines: int = 4, holder: str = "engine") -> Claim:
        """A batch in progress that an engine has claimed."""
        self.accepted(num_lines)
        claim = self.work.claim(holder, [MODEL], NOW, 60)
        assert claim is not None
        return claim

    def finalizing(self, num_lines: int = 4) -> BatchRecord:
        claim = self.claimed(num_lines)
        self.work.commit(claim, [answer(i) for i in range(1, num_lines + 1)], NOW + 2)
        assert self.work.finish(claim, NOW + 3)
        return self.batches.get(claim.batch_id)


def answer(line: int, status_code: int = 200) -> Outcome:
    return Outcome(
        line=line,
        status_code=status_code,
        body=json.dumps({"line": line}),
        num_prompt_tokens=10,
        num_cached_tokens=4,
        num_output_tokens=3,
    )


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Store:
    return Store(database, tmp_path / "blobs")
