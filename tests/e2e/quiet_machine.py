"""Whether a measurement of time says something about Trunkline, or about the machine.

A virtual machine that has used up what its host grants it stands still for tenths of a second,
again and again, until it has rested; its operating system counts this as stolen time. A test suite
that has computed for minutes gets there. What is measured meanwhile is the host.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

MAX_BUSY_PERCENT = 25.0
MAX_STOLEN_SHARE = 0.01
PROBE_SECONDS = 2.0
REST_SECONDS = 20.0
MAX_WAIT_SECONDS = 120.0
BUSY_LOOP = f"import time\nend = time.time() + {PROBE_SECONDS}\nwhile time.time() < end: pass"


class StolenTime:
    """The share of all processors' time that the host has taken since this object was made."""

    def __init__(self) -> None:
        self._began_at = time.monotonic()
        self._before_seconds = _stolen_seconds()

    @property
    def share(self) -> float:
        available_seconds = (time.monotonic() - self._began_at) * (psutil.cpu_count() or 1)
        return (_stolen_seconds() - self._before_seconds) / available_seconds

    @property
    def is_much(self) -> bool:
        return self.share > MAX_STOLEN_SHARE


def wait_for_quiet_machine() -> None:
    """Wait until the machine has all its processors for us, and nothing to write to its disk.

    Skips the test if others keep the machine busy. Continuous integration is alone, and goes on.
    """
    os.sync()
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    while (busy_percent := psutil.cpu_percent(interval=2.0)) > MAX_BUSY_PERCENT:
        if time.monotonic() > deadline:
            break
    if busy_percent > MAX_BUSY_PERCENT and os.environ.get("CI") != "true":
        pytest.skip(f"the machine is busy with other things: {busy_percent:.0f} % of it is used")
    while _is_taken_away() and time.monotonic() < deadline:
        time.sleep(REST_SECONDS)


def _is_taken_away() -> bool:
    """Use all processors for a moment, and see whether we get them."""
    stolen = StolenTime()
    loops = [
        subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(psutil.cpu_count() or 1)
    ]
    for loop in loops:
        loop.wait()
    return stolen.is_much


def _stolen_seconds() -> float:
    # Only Linux knows it.
    return float(getattr(psutil.cpu_times(), "steal", 0.0))
