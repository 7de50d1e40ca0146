"""`trunkline serve`: what cannot work is refused in one line, what dies is started again."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.models import small_model
from tests.server.live_server import HANG_SECONDS
from tests.support import free_port, wait_for
from trunkline.server import supervisor as supervisor_module
from trunkline.server.supervisor import EngineSupervisor

BAD_CONFIG = 2
FIRST_PAUSE_SECONDS = 0.02


def trunkline(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trunkline", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
    )


def refusal(process: subprocess.Popen[str]) -> str:
    """The one line in which a command says why it ends with status 2."""
    _, error = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == BAD_CONFIG, error
    lines = [line for line in error.splitlines() if line.startswith("trunkline: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


def test_a_malformed_option_of_the_engine(tmp_path: Path) -> None:
    process = trunkline(
        *("serve", "--port", str(free_port()), "--data-dir", str(tmp_path / "data")),
        *("--dtype", "nonsense"),
        COLUMNS="200",
    )
    _, error = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == BAD_CONFIG, error
    (line,) = [line for line in error.splitlines() if "nonsense" in line]
    assert "--dtype" in line
    assert "'auto', 'float32', 'bfloat16', 'float16'" in line
    assert "Traceback" not in error
    assert "restart in" not in error


def test_a_model_folder_that_does_not_exist(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "no-such-model")
    line = refusal(
        trunkline(
            *("serve", "--port", str(free_port()), "--data-dir", str(tmp_path / "data")),
            *("--model", nowhere),
        )
    )
    assert nowhere in line


def tail(*values: object) -> object:
    """A case of the full run."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("command", "environment", "message"),
    [
        ("server", {"TRUNKLINE_PORT": "eighty"}, "TRUNKLINE_PORT is 'eighty'"),
        tail("serve", {"TRUNKLINE_PORT": "65536"}, "TRUNKLINE_PORT is '65536'"),
        tail("serve", {"TRUNKLINE_WINDOW_SECONDS": "0"}, "TRUNKLINE_WINDOW_SECONDS is '0'"),
        tail("server", {"TRUNKLINE_DATABASE_URL": "mysql://x:secret@y/z"}, "must be sqlite:///"),
        (
            "server",
            {"TRUNKLINE_DATABASE_URL": "postgresql://nobody:secret@127.0.0.1:1/none"},
            "cannot be used",
        ),
        ("server", {"TRUNKLINE_DATA_DIR": "/dev/null/data"}, "/dev/null/data"),
    ],
)
def test_a_malformed_variable(
    command: str, environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    given = {"TRUNKLINE_DATA_DIR": str(tmp_path / "data"), **environment}
    line = refusal(trunkline(command, **given))
    assert message in line
    assert "secret" not in line


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = trunkline("server", "--port", port, "--data-dir", str(tmp_path / "data"))
        _, error = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode != 0
    assert f"('127.0.0.1', {port})" in error
    assert "Traceback" not in error


@pytest.fixture
def broken_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a shell script in the engine's place; each of its starts is a line of a file."""

    def install(script: str) -> Path:
        starts = tmp_path / "starts"
        starts.touch()
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\necho \"$@\" >> '{starts}'\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        monkeypatch.setattr(supervisor_module, "FIRST_PAUSE_SECONDS", FIRST_PAUSE_SECONDS)
        return starts

    return install


def is_supervising() -> bool:
    """Whether a supervisor's thread goes on; nothing is started when it has ended."""
    return any(thread.name == "supervisor" for thread in threading.enumerate())


@pytest.fixture
def running(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are stopped at the end."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.terminate()
        process.communicate(timeout=HANG_SECONDS)


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_two_on_one_data_folder(tmp_path: Path, running: list[subprocess.Popen[str]]) -> None:
    data_dir = str(tmp_path / "data")
    port = free_port()
    model = str(small_model())
    first = trunkline("serve", "--port", str(port), "--data-dir", data_dir, "--model", model)
    running.append(first)

    def answers() -> bool:
        assert first.poll() is None, first.communicate()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    wait_for(answers, HANG_SECONDS)
    line = refusal(trunkline("serve", "--port", str(free_port()), "--data-dir", data_dir))
    assert f"another `trunkline serve` runs on {data_dir}" in line
    assert answers()
    first.send_signal(signal.SIGINT)
    _, error = first.communicate(timeout=HANG_SECONDS)
    assert first.returncode == 0, error
    assert "Traceback" not in error


def test_an_engine_that_dies_is_started_again(broken_engine: Callable[[str], Path]) -> None:
    starts = broken_engine("exit 1")
    complaints: list[str] = []
    supervised = EngineSupervisor(["--model", "m"], {}, lambda: complaints.append("bad"))
    supervised.start()
    wait_for(lambda: num_lines(starts) >= 3)
    supervised.stop()
    count = num_lines(starts)
    assert set(starts.read_text().splitlines()) == {
        f"-m trunkline engine --model m --parent-pid {os.getpid()}"
    }
    assert not is_supervising()
    assert num_lines(starts) == count
    assert complaints == []


def test_the_pause_grows(
    broken_engine: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    starts = broken_engine("exit 1")
    supervised = EngineSupervisor([], {}, lambda: None)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        supervised.start()
        wait_for(lambda: num_lines(starts) >= 5)
        seconds = time.monotonic() - started
        supervised.stop()
    said = [record.args for record in caplog.records if "restart in" in record.msg]
    pauses = [FIRST_PAUSE_SECONDS * 2**i for i in range(4)]
    assert said[:4] == [(1, pause) for pause in pauses]
    assert seconds >= sum(pauses)


def test_a_configuration_that_cannot_work_is_not_tried_again(
    broken_engine: Callable[[str], Path],
) -> None:
    starts = broken_engine(f"exit {BAD_CONFIG}")
    complaints: list[str] = []
    supervised = EngineSupervisor([], {}, lambda: complaints.append("bad"))
    supervised.start()
    wait_for(lambda: not is_supervising())
    assert complaints == ["bad"]
    assert num_lines(starts) == 1
    supervised.stop()


def test_an_engine_that_will_not_stop_is_killed(
    broken_engine: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(supervisor_module, "STOP_SECONDS", 0.1)
    is_deaf = tmp_path / "is-deaf"
    broken_engine(f"trap '' TERM\ntouch '{is_deaf}'\nwhile :; do sleep 0.05; done")
    supervised = EngineSupervisor([], {}, lambda: None)
    supervised.start()
    wait_for(is_deaf.exists)
    supervised.stop()
    assert "the engine does not stop; killed" in caplog.text
    assert not is_supervising()
