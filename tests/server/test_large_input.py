"""The largest input file: memory stays flat, and other clients do not wait."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

NUM_LINES = 50_000
NUM_BYTES = 200 * 1024 * 1024
MAX_GROWTH_BYTES = 64 * 1024 * 1024
MAX_VALIDATION_SECONDS = 30.0
MAX_REPLY_SECONDS = 0.1


def write_input(path: Path) -> None:
    """A file of exactly `NUM_BYTES` with `NUM_LINES` lines."""
    line_bytes = NUM_BYTES // NUM_LINES
    with path.open("wb") as file:
        for i in range(NUM_LINES):
            messages = [{"role": "user", "content": ""}]
            line = {
                "custom_id": f"request-{i}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": "tiny", "messages": messages},
            }
            wanted = line_bytes if i < NUM_LINES - 1 else NUM_BYTES - file.tell()
            messages[0]["content"] = "many words " * 2000
            room = wanted - 1 - (len(json.dumps(line)) - len(messages[0]["content"]))
            messages[0]["content"] = messages[0]["content"][:room]
            file.write(json.dumps(line).encode() + b"\n")


# The bytes take the same way on PostgreSQL.
@pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)
def test_the_largest_input_file(
    make_server: Callable[..., Any], tmp_path: Path, watching: Any
) -> None:
    server = make_server()
    source = tmp_path / "in.jsonl"
    write_input(source)
    assert source.stat().st_size == NUM_BYTES
    server.upload(b"{}\n")  # what the first upload imports is not what is measured
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with watching(process) as largest:
        with source.open("rb") as file:
            started = time.monotonic()
            uploaded = server.client.files.create(file=("in.jsonl", file), purpose="batch")
            upload_seconds = time.monotonic() - started
        growth = largest() - before
        assert uploaded.bytes == NUM_BYTES

        batch = server.client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        started = time.monotonic()
        seconds: list[float] = []
        with httpx.Client(base_url=server.base_url) as client:
            while True:
                asked = time.monotonic()
                status = client.get(f"/v1/batches/{batch.id}").json()["status"]
                seconds.append(time.monotonic() - asked)
                if status != "validating":
                    break
                time.sleep(0.02)
        validation_seconds = time.monotonic() - started
        growth_at_end = largest() - before
    assert status == "in_progress"
    assert server.client.batches.retrieve(batch.id).request_counts.total == NUM_LINES
    p95 = statistics.quantiles(seconds, n=20)[-1]
    measured = {
        "upload_seconds": round(upload_seconds, 2),
        "growth_mib": round(growth / 2**20, 1),
        "growth_at_end_mib": round(growth_at_end / 2**20, 1),
        "validation_seconds": round(validation_seconds, 2),
        "replies": len(seconds),
        "median_reply_ms": round(1000 * statistics.median(seconds), 1),
        "p95_reply_ms": round(1000 * p95, 1),
        "slowest_reply_ms": round(1000 * max(seconds), 1),
    }
    logging.getLogger(__name__).info("%s", measured)  # pytest --log-cli-level=INFO shows it
    assert max(growth, growth_at_end) < MAX_GROWTH_BYTES, measured
    assert validation_seconds < MAX_VALIDATION_SECONDS, measured
    assert statistics.median(seconds) < MAX_REPLY_SECONDS, measured
    assert p95 < MAX_REPLY_SECONDS, measured

    # Bytes on the way back are not gathered either.
    before = process.memory_info().rss
    with watching(process) as largest:
        with server.http.stream("GET", f"/v1/files/{uploaded.id}/content") as reply:
            assert sum(map(len, reply.iter_raw())) == NUM_BYTES
        assert largest() - before < MAX_GROWTH_BYTES
