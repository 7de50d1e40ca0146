"""Files of records that are whole after every line, whenever their writer is killed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from gpu.parts import Record
from harness.rows import RESULTS


def results_file(part: str) -> Path:
    """The JSONL file of a part, in the folder that run.sh names."""
    return Path(os.environ.get("OUT", RESULTS)) / f"gpu-{part}.jsonl"


class RecordFile:
    """JSON lines, each by one write of its own, so that it is there as a whole or not at all."""

    def __init__(self, path: Path, *, is_continued: bool = False) -> None:
        """Open `path`, and empty it unless it is continued."""
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._descriptor = os.open(path, flags if is_continued else flags | os.O_TRUNC, 0o644)

    def append(self, record: Record) -> None:
        """Add a line.

        Raises:
            OSError: the disk took only a part of it.
            ValueError: a number is none, or infinite, for which JSON has no word.
        """
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        written = os.write(self._descriptor, line)
        if written != len(line):
            raise OSError(f"{written} of {len(line)} bytes of a record were written")

    def close(self) -> None:
        os.close(self._descriptor)
