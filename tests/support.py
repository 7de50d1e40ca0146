"""What tests of several suites need: conditions, free ports, the cache, tools that may lack."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

T = TypeVar("T")

HANG_SECONDS = 120.0  # only what hangs takes so long, on any machine


def wait_for(condition: Callable[[], T | None], seconds: float = HANG_SECONDS) -> T:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s"
        time.sleep(0.02)
    return value


def free_port() -> int:
    """A port of the loopback interface that nobody listened on just now.

    Not one of those that the system gives to outgoing connections: one of these may take it before
    it is listened on. It is drawn at random, as other processes of the tests look for theirs.
    """
    source = random.SystemRandom()
    while True:
        port = source.randrange(10_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def cache_dir() -> Path:
    """Trunkline's cache."""
    return Path(os.environ.get("TRUNKLINE_CACHE_DIR") or "~/.cache/trunkline").expanduser()


def missing(reason: str) -> NoReturn:
    """A tool that a desk may lack, and continuous integration may not."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
