"""Load for a running API server: many who watch a batch, some who upload large files.

    python benchmarks/server_load.py --base-url http://127.0.0.1:8000 --batch batch_… --seconds 60

Prints one JSON object: how many requests of each kind, how long they took, what went wrong. Exit
status 1 when anything did. Both kinds go on for `--seconds`, and until each has had `--min-polls`
and `--min-uploads` answers. With `--server-pid` it also tells how many bytes the server wrote while
a status request waited, which is a wait in work rather than in seconds: a slow machine does not
change it.

The generator shares the machine with the server, so it is made cheap: HTTP/1.1 by hand over plain
sockets, a file that is one block of lines again and again, and the uploads in a process of lower
priority. Whoever watches has the usual priority, as waiting for the processor on the client's side
would look like a slow server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psutil

MIB = 1024 * 1024
BOUNDARY = "a-boundary-that-is-in-no-file"
LINE = json.dumps({"custom_id": "x" * 100, "body": {"prompt": "y" * 2000}}).encode() + b"\n"
BLOCK = LINE * (128 * 1024 // len(LINE))
UPLOAD_NICENESS = 10


@dataclass
class Tally:
    """What became of the requests of one kind."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    # What the server wrote while each request waited, if that was asked for.
    written_bytes: list[int] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        ordered, written = sorted(self.seconds), sorted(self.written_bytes)
        return {
            "count": len(ordered),
            "mean_seconds": statistics.fmean(ordered) if ordered else None,
            "p50_seconds": _quantile(ordered, 0.5),
            "p99_seconds": _quantile(ordered, 0.99),
            "max_seconds": ordered[-1] if ordered else None,
            "p50_written_bytes": _quantile(written, 0.5),
            "p99_written_bytes": _quantile(written, 0.99),
            "errors": self.errors[:10],
            "num_errors": len(self.errors),
        }


def _quantile(ordered: list[float] | list[int], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


class Connection:
    """One kept-alive connection."""

    def __init__(self, base_url: str, key: str) -> None:
        parts = urlsplit(base_url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._headers = f"Host: {self._host}:{self._port}\r\nAuthorization: Bearer {key}\r\n"
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(
        self, method: str, path: str, headers: str = "", body: Iterable[bytes] = ()
    ) -> tuple[int, bytes]:
        """Status and body of the reply. `headers`: lines that say how long `body` is."""
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        try:
            head = f"{method} {path} HTTP/1.1\r\n{self._headers}{headers}\r\n"
            self._writer.write(head.encode())
            for part in body:
                self._writer.write(part)
                await self._writer.drain()
            return await self._reply(self._reader)
        except BaseException:
            self.close()
            raise

    @staticmethod
    async def _reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers["content-length"]))
        return int(head[0].split(" ")[1]), body

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


class Goal:
    """When one kind of requests has been sent for long enough, and often enough."""

    def __init__(self, seconds: float, min_count: int, tally: Tally) -> None:
        self._until = time.monotonic() + seconds
        self._min_count = min_count
        self._tally = tally
        self.is_reached = asyncio.Event()
        self.other_is_reached = asyncio.Event()  # that of the other kind

    @property
    def is_over(self) -> bool:
        """Nobody sends any more."""
        return self.is_reached.is_set() and self.other_is_reached.is_set()

    def look(self) -> None:
        """Called after each answer. An error ends it, too: nothing is gained by going on."""
        tally = self._tally
        has_enough = len(tally.seconds) >= self._min_count and time.monotonic() >= self._until
        if has_enough or tally.errors:
            self.is_reached.set()


async def poll(
    connection: Connection,
    batch_id: str,
    first_at: float,
    goal: Goal,
    tally: Tally,
    server: psutil.Process | None,
) -> None:
    """Ask for the batch once a second. Times are monotonic."""
    next_at = first_at
    while not goal.is_over:
        await asyncio.sleep(next_at - time.monotonic())
        begun = time.monotonic()
        written_before = _written_bytes(server)
        try:
            status, body = await connection.request("GET", f"/v1/batches/{batch_id}")
        except (OSError, EOFError) as error:
            tally.errors.append(repr(error))
        else:
            tally.seconds.append(time.monotonic() - begun)
            # What is written when nobody uploads says nothing.
            if server is not None and not goal.other_is_reached.is_set():
                tally.written_bytes.append(_written_bytes(server) - written_before)
            if status != 200 or json.loads(body)["id"] != batch_id:
                tally.errors.append(f"{status}: {body[:200]!r}")
        goal.look()
        # Who has waited for more than a second asks again at once.
        next_at = max(next_at + 1.0, time.monotonic())


def _written_bytes(server: psutil.Process | None) -> int:
    """Bytes written by the server since its start, to files and connections."""
    return int(server.io_counters().write_chars) if server is not None else 0


def body_around(num_bytes: int) -> tuple[bytes, bytes]:
    """What comes before the bytes of a file in its multipart body, and behind them."""
    before = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; "
        f'name="file"; filename="load-{num_bytes}.jsonl"\r\n\r\n'
    )
    return before.encode(), f"\r\n--{BOUNDARY}--\r\n".encode()


def parts(before: bytes, num_bytes: int, behind: bytes) -> Iterator[bytes]:
    yield before
    for start in range(0, num_bytes, len(BLOCK)):
        yield BLOCK[: num_bytes - start]
    yield behind


async def upload(connection: Connection, num_bytes: int, goal: Goal, tally: Tally) -> None:
    """Upload a file, delete it, and again."""
    before, behind = body_around(num_bytes)
    headers = (
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {len(before) + num_bytes + len(behind)}\r\n"
    )
    while not goal.is_over:
        begun = time.monotonic()
        try:
            status, body = await connection.request(
                "POST", "/v1/files", headers, parts(before, num_bytes, behind)
            )
            tally.seconds.append(time.monotonic() - begun)
            if status != 200 or json.loads(body)["bytes"] != num_bytes:
                tally.errors.append(f"{status}: {body[:200]!r}")
                continue
            status, body = await connection.request("DELETE", f"/v1/files/{json.loads(body)['id']}")
            if status != 200:
                tally.errors.append(f"{status}: {body[:200]!r}")
        except (OSError, EOFError) as error:
            tally.errors.append(repr(error))
        finally:
            goal.look()


async def run_pollers(arguments: argparse.Namespace) -> tuple[Tally, dict[str, Any]]:
    """The polls, and what the process of the uploads has printed at its end."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", "uploads"]
    uploads = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert uploads.stdin is not None
    assert uploads.stdout is not None
    server = psutil.Process(arguments.server_pid) if arguments.server_pid else None
    tally = Tally()
    goal = Goal(arguments.seconds, arguments.min_polls, tally)
    start = time.monotonic()
    connections = [Connection(arguments.base_url, arguments.key) for _ in range(arguments.pollers)]
    async with asyncio.TaskGroup() as group:
        for i, connection in enumerate(connections):
            # Spread over the second, as those are who do not know of each other.
            first_at = start + i / len(connections)
            group.create_task(poll(connection, arguments.batch, first_at, goal, tally, server))
        # The first line says that there were enough uploads, the end of our pipe that there were
        # enough polls.
        group.create_task(_when(uploads.stdout.readline(), goal.other_is_reached))
        await goal.is_reached.wait()
        uploads.stdin.close()
    for connection in connections:
        connection.close()
    output, _ = await uploads.communicate()
    return tally, json.loads(output)


async def _when(it_is_through: Awaitable[object], event: asyncio.Event) -> None:
    await it_is_through
    event.set()


async def run_uploaders(arguments: argparse.Namespace) -> Tally:
    tally = Tally()
    goal = Goal(arguments.seconds, arguments.min_uploads, tally)
    connections = [
        Connection(arguments.base_url, arguments.key) for _ in range(arguments.uploaders)
    ]
    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(upload(connection, arguments.upload_bytes, goal, tally))
        group.create_task(_when(asyncio.to_thread(sys.stdin.read), goal.other_is_reached))
        await goal.is_reached.wait()
        print(flush=True)
    for connection in connections:
        connection.close()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base-url", required=True, help="without /v1")
    parser.add_argument("--key", default="unused")
    parser.add_argument("--batch", required=True, help="the batch that is watched")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pollers", type=int, default=200, help="each asks once a second")
    parser.add_argument("--uploaders", type=int, default=10)
    parser.add_argument("--upload-bytes", type=int, default=100 * MIB)
    parser.add_argument("--min-polls", type=int, default=0, help="in all")
    parser.add_argument("--min-uploads", type=int, default=0, help="in all")
    parser.add_argument("--server-pid", type=int, help="a server on this machine")
    parser.add_argument("--only", choices=["uploads"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        os.nice(UPLOAD_NICENESS)
        print(json.dumps(asyncio.run(run_uploaders(arguments)).as_json()))
        return 0
    tally, uploads = asyncio.run(run_pollers(arguments))
    polls = tally.as_json()
    figures = {"polls": polls, "uploads": uploads}
    print(json.dumps(figures, indent=2))
    return 1 if polls["num_errors"] or figures["uploads"]["num_errors"] else 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
