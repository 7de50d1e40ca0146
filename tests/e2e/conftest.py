"""A whole installation as a user runs it: `trunkline serve` in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import psutil
import pytest

START_SECONDS = 240.0  # the first start fetches and converts the default model


class Installation:
    """A data folder, and the processes that work on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log_path = folder / "serve.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="unused")

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def start(self, *options: str) -> None:
        """Start the server, and wait until an engine is ready too."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "trunkline", "serve"),
                    *("--port", str(self.port), "--data-dir", str(self.folder / "data")),
                    *options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
            )
        self.wait_for(self.engine_is_ready, START_SECONDS)

    def engine_is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the server has ended:\n{self.log}"
        try:
            ready = httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return False
        return bool(ready["engine_alive"])

    def engines(self) -> list[psutil.Process]:
        """The engine's process, or none while it is down."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children()
        return [
            child
            for child in children
            if child.status() != psutil.STATUS_ZOMBIE and "engine" in child.cmdline()
        ]

    def kill_engine(self) -> None:
        """SIGKILL to the engine; returns when it is gone."""
        (engine,) = self.engines()
        engine.kill()
        self.wait_for(lambda: not engine.is_running() or engine not in self.engines(), 10)

    def kill(self) -> None:
        """SIGKILL to every process of the installation at once."""
        assert self.process is not None
        server = psutil.Process(self.process.pid)
        for process in [server, *server.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> int:
        """Ask the server to stop; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=60)
        self.process = None
        return status

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s\n{self.log}"
            time.sleep(0.1)


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """An installation that is not running yet; whatever runs at the end is killed."""
    made = Installation(tmp_path)
    yield made
    if made.process is not None:
        made.kill()
