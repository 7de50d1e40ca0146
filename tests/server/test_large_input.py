"""The largest input file: the server's memory stays flat on its whole way.

That nobody waits for its validation is in `test_restart`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

MIB = 1024 * 1024


def write_input(path: Path, num_bytes: int, num_lines: int) -> None:
    """A file of exactly `num_bytes` with `num_lines` lines."""
    line_bytes = num_bytes // num_lines
    with path.open("wb") as file:
        for i in range(num_lines):
            messages = [{"role": "user", "content": ""}]
            line = {
                "custom_id": f"request-{i}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": "tiny", "messages": messages},
            }
            wanted = line_bytes if i < num_lines - 1 else num_bytes - file.tell()
            messages[0]["content"] = "many words " * 2000
            room = wanted - 1 - (len(json.dumps(line)) - len(messages[0]["content"]))
            messages[0]["content"] = messages[0]["content"][:room]
            file.write(json.dumps(line).encode() + b"\n")


@pytest.mark.parametrize(
    ("num_mib", "num_lines", "max_growth_mib"),
    [
        (24, 6_000, 16),
        pytest.param(200, 50_000, 64, marks=pytest.mark.slow),  # as much as is allowed
    ],
)
def test_a_large_input_file(
    sqlite_server: Any,  # the bytes take the same way on PostgreSQL
    tmp_path: Path,
    watching: Any,
    num_mib: int,
    num_lines: int,
    max_growth_mib: int,
) -> None:
    server = sqlite_server
    source = tmp_path / "in.jsonl"
    write_input(source, num_mib * MIB, num_lines)
    server.upload(b"{}\n")  # what the first upload imports is not what is measured
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with watching(process) as largest:
        with source.open("rb") as file:
            uploaded = server.client.files.create(file=("in.jsonl", file), purpose="batch")
        assert uploaded.bytes == num_mib * MIB
        batch = server.client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        batch = server.wait(batch.id, "in_progress")
        assert batch.request_counts.total == num_lines
        # Bytes on the way back are not gathered either.
        with server.http.stream("GET", f"/v1/files/{uploaded.id}/content") as reply:
            assert sum(map(len, reply.iter_raw())) == num_mib * MIB
        growth_mib = (largest() - before) / MIB
    assert growth_mib < max_growth_mib
