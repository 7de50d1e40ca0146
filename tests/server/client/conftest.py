"""What the tests of the shell client share: a command's result, and a proxy that spoils things."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from tests.server.live_server import HANG_SECONDS
from trunkline.server.client import api, watch
from trunkline.server.client.commands import app


def _jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.fixture(autouse=True)
def _quick_and_by_itself(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("TRUNKLINE_", "OPENAI_")) or name == "FORCE_COLOR":
            monkeypatch.delenv(name)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(api, "PAUSES", (0.05, 0.05, 0.05))


def _run(*arguments: object, url: str) -> Result:
    """The result of a command, which must not fail in a way that it was not made for."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--base-url", url])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def _complaint(result: Result) -> str:
    """The one line that says what went wrong."""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("trunkline: ")]
    return line.removeprefix("trunkline: ")


@contextmanager
def _working(
    engine: Any, failing: frozenset[str] = frozenset(), may_end: threading.Event | None = None
) -> Iterator[None]:
    """Answers the next batch beside the test, in two steps; the second when it may end."""

    def work() -> None:
        claim = engine.claim()
        engine.answer(claim, limit=2, failing=failing)
        assert may_end is None or may_end.wait(HANG_SECONDS)
        engine.complete(claim, failing=failing)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(HANG_SECONDS)


@pytest.fixture
def batch_file(engine: Any, tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(_jsonl(engine.lines(5)))
    return path


def _custom_ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


class Proxy:
    """Stands before a server and spoils what the test wants to be spoilt."""

    def __init__(self, upstream: str, spoil: Callable[[str, str, int], int | None]) -> None:
        """
        Args:
            upstream: URL of the server.
            spoil: given method, path and how often that was asked for before, the status to
                answer with, 0 to pass it on and hang up, or None.
        """
        seen: Counter[tuple[str, str]] = Counter()
        self.requests = seen

        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                path = self.path.partition("?")[0]
                spoilt = spoil(self.command, path, seen[self.command, path])
                seen[self.command, path] += 1
                length = int(self.headers.get("content-length", 0))
                body = self.rfile.read(length)
                if spoilt:
                    self.send_response(spoilt)
                    self.send_header("content-length", "9")
                    self.end_headers()
                    self.wfile.write(b"not found")
                    return
                headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
                reply = httpx.request(
                    self.command,
                    upstream + self.path,
                    content=body,
                    headers=headers,
                    timeout=HANG_SECONDS,
                )
                if spoilt == 0:
                    self.close_connection = True
                    return
                self.send_response(reply.status_code)
                for name in ("content-type", "x-last-line", "x-incomplete"):
                    if name in reply.headers:
                        self.send_header(name, reply.headers[name])
                self.send_header("content-length", str(len(reply.content)))
                self.end_headers()
                self.wfile.write(reply.content)

            do_GET = do_POST = do_DELETE = _handle  # noqa: N815  # names of the library

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def proxy() -> Any:
    """Puts a `Proxy` before a server."""

    @contextmanager
    def opened(server: Any, spoil: Callable[[str, str, int], int | None]) -> Iterator[Proxy]:
        made = Proxy(server.base_url, spoil)
        try:
            yield made
        finally:
            made.close()

    return opened


@pytest.fixture
def run() -> Any:
    """Runs a command on the server `url`."""
    return _run


@pytest.fixture
def complaint() -> Any:
    """The one line that says what went wrong."""
    return _complaint


@pytest.fixture
def working() -> Any:
    """Answers the next batch beside the test."""
    return _working


@pytest.fixture
def custom_ids() -> Any:
    """The custom ids of a file of results."""
    return _custom_ids


@pytest.fixture
def jsonl() -> Any:
    """The bytes of a batch file."""
    return _jsonl
