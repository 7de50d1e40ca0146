"""Load for a running API server: many who watch a batch, some who upload large files.

    python benchmarks/server_load.py --base-url http://127.0.0.1:8000 --batch batch_… --seconds 60

Prints one JSON object: how many requests of each kind, how long they took, what went wrong. Exit
status 1 when anything did.

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
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

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

    def as_json(self) -> dict[str, Any]:
        ordered = sorted(self.seconds)
        return {
            "count": len(ordered),
            "mean_seconds": statistics.fmean(ordered) if ordered else None,
            "p50_seconds": _quantile(ordered, 0.5),
            "p99_seconds": _quantile(ordered, 0.99),
            "max_seconds": ordered[-1] if ordered else None,
            "errors": self.errors[:10],
            "num_errors": len(self.errors),
        }


def _quantile(ordered: list[float], share: float) -> float | None:
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


async def poll(
    connection: Connection, batch_id: str, first_at: float, until: float, tally: Tally
) -> None:
    """Ask for the batch once a second. Times are monotonic."""
    next_at = first_at
    while next_at < until:
        await asyncio.sleep(next_at - time.monotonic())
        begun = time.monotonic()
        try:
            status, body = await connection.request("GET", f"/v1/batches/{batch_id}")
        except (OSError, EOFError) as error:
            tally.errors.append(repr(error))
        else:
            tally.seconds.append(time.monotonic() - begun)
            if status != 200 or json.loads(body)["id"] != batch_id:
                tally.errors.append(f"{status}: {body[:200]!r}")
        # Who has waited for more than a second asks again at once.
        next_at = max(next_at + 1.0, time.monotonic())


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


async def upload(connection: Connection, num_bytes: int, until: float, tally: Tally) -> None:
    """Upload a file, delete it, and again."""
    before, behind = body_around(num_bytes)
    headers = (
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {len(before) + num_bytes + len(behind)}\r\n"
    )
    while time.monotonic() < until:
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


async def run_pollers(arguments: argparse.Namespace) -> Tally:
    tally = Tally()
    start = time.monotonic()
    connections = [Connection(arguments.base_url, arguments.key) for _ in range(arguments.pollers)]
    # Spread over the second, as those are who do not know of each other.
    await asyncio.gather(
        *(
            poll(
                connection,
                arguments.batch,
                start + i / len(connections),
                start + arguments.seconds,
                tally,
            )
            for i, connection in enumerate(connections)
        )
    )
    for connection in connections:
        connection.close()
    return tally


async def run_uploaders(arguments: argparse.Namespace) -> Tally:
    tally = Tally()
    until = time.monotonic() + arguments.seconds
    connections = [
        Connection(arguments.base_url, arguments.key) for _ in range(arguments.uploaders)
    ]
    await asyncio.gather(
        *(upload(connection, arguments.upload_bytes, until, tally) for connection in connections)
    )
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
    parser.add_argument("--only", choices=["uploads"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        os.nice(UPLOAD_NICENESS)
        print(json.dumps(asyncio.run(run_uploaders(arguments)).as_json()))
        return 0
    command = [sys.executable, __file__, *sys.argv[1:], "--only", "uploads"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as uploads:
        polls = asyncio.run(run_pollers(arguments)).as_json()
        output, _ = uploads.communicate()
    figures = {"polls": polls, "uploads": json.loads(output)}
    print(json.dumps(figures, indent=2))
    return 1 if polls["num_errors"] or figures["uploads"]["num_errors"] else 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
