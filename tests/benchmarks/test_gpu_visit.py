"""What a run of the GPU benchmarks leaves when it is cut, fails, or runs out of time.

With parts that measure nothing, and a machine that is none: run.sh and what it starts are the same.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from tests.support import wait_for

MACHINE = """
    is_poisoned = False

    def describe():
        return "a machine"

    def use_kernels():
        return []

    def kernels():
        return "none"

    def header(part):
        return {"part": f"gpu-{part}", "device": "none"}

    def synchronise():
        pass

    def is_usable():
        return not is_poisoned
"""
# For every part: names of cases that measure one thing each, and what is special about some.
PART = """
    import os, signal, time
    from gpu import machine
    from gpu.parts import Case

    def line(record):
        return f"measured {record['case']}"

    def plain(name, **more):
        def measure():
            yield {"case": name, **more}
        return measure

    def cases():
        for i in range(3):
            yield Case(f"case {i}", plain(f"case {i}"))
"""
MODULES = {
    "smoke": "smoke",
    "kernels": "check_kernels",
    "kernel-bench": "time_kernels",
    "end-to-end": "end_to_end",
    "profile": "profile_step",
    "equality": "check_equality",
    "peer": "peer",
}

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(benchmarks: Path, tmp_path: Path) -> Start:
    """Starts run.sh in a session of its own, with parts as given and the others plain."""
    fakes = tmp_path / "fakes" / "gpu"
    fakes.mkdir(parents=True)
    real = benchmarks / "gpu"
    (fakes / "__init__.py").write_text(f"__path__.append({str(real)!r})\n")
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH={fakes.parent}:$PYTHONPATH exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)

    def started(
        *arguments: str,
        machine: str = "",
        environment: dict[str, str] | None = None,
        stdout: int | IO[str] = subprocess.PIPE,
        **parts: str,
    ) -> subprocess.Popen[str]:
        (fakes / "machine.py").write_text(textwrap.dedent(MACHINE) + textwrap.dedent(machine))
        for part, module in MODULES.items():
            own = parts.get(part.replace("-", "_"), "")
            (fakes / f"{module}.py").write_text(textwrap.dedent(PART) + textwrap.dedent(own))
        return subprocess.Popen(
            # Below a shell, as a caller's script has it: run.sh does not lead the session.
            ["sh", "-c", '"$0" "$@"; exit $?', real / "run.sh", *arguments],
            env={
                **os.environ,
                "OUT": str(tmp_path),
                "SECONDS_OVERALL": "60",
                "PYTHON": str(python),
                "PYTHONPATH": "",
                "PYTHONDONTWRITEBYTECODE": "1",  # fakes of the same second and size are others
                **(environment or {}),
            },
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return started


def cases_in(folder: Path, part: str) -> list[str]:
    """The cases of a part's file, every line of which has to be whole."""
    text = (folder / f"gpu-{part}.jsonl").read_text()
    assert not text or text.endswith("\n")
    records: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    return [record["case"] for record in records if "case" in record]


def summary_of(output: str) -> str:
    return output.split("== summary\n")[1]


def test_all_parts_but_the_peer_run(start: Start, tmp_path: Path) -> None:
    process = start()
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    parts = [part for part in MODULES if part != "peer"]
    assert output.startswith("a machine\n== smoke, 60 s\nmeasured case 0\n")
    assert [line.split(",")[0] for line in output.splitlines() if line.startswith("== ")] == [
        *(f"== {part}" for part in parts),
        "== kernels: none",
        "== summary",
    ]
    for part in parts:
        assert cases_in(tmp_path, part) == ["case 0", "case 1", "case 2"]
    assert not (tmp_path / "gpu-peer.jsonl").exists()


def test_peer_has_a_process_of_its_own(start: Start, tmp_path: Path) -> None:
    own = """
        def cases():
            yield Case("process", plain(os.getpid()))
    """
    process = start("peer", "smoke", smoke=own, peer=own)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert cases_in(tmp_path, "smoke") != cases_in(tmp_path, "peer")


@pytest.mark.parametrize("seed", range(6))
def test_what_was_printed_is_in_the_file_after_a_kill(
    seed: int, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "gpu-smoke.jsonl").write_text('{"case": "of an earlier run"}\n')
    (tmp_path / "gpu-kernels.jsonl").write_text('{"case": "of an earlier run"}\n')
    endless = """
        def cases():
            for i in range(100_000):
                yield Case(f"case {i}", plain(f"case {i}", text=600 * "x"))
    """
    # Not to a pipe, which would hold the process up.
    with (tmp_path / "output").open("w") as output:
        process = start("smoke", "kernels", smoke=endless, stdout=output)
    wait_for(lambda: "measured" in (tmp_path / "output").read_text())
    time.sleep(random.Random(seed).uniform(0.0, 0.3))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    printed = (tmp_path / "output").read_text().splitlines(keepends=True)
    found = [
        line.split()[-1] for line in printed if line.startswith("measured") and line[-1] == "\n"
    ]
    assert found
    in_file = cases_in(tmp_path, "smoke")
    assert in_file[: len(found)] == [f"case {number}" for number in found]
    assert len(in_file) - len(found) <= 1
    cases_in(tmp_path, "visit")
    assert not (tmp_path / "gpu-kernels.jsonl").exists()


def test_no_process_outlives_a_kill(start: Start) -> None:
    waiting = """
        def cases():
            print("process", os.getpid(), flush=True)
            yield Case("case 0", lambda: time.sleep(600))
    """
    process = start("smoke", smoke=waiting)
    assert process.stdout is not None
    inner = int(next(line for line in process.stdout if line.startswith("process")).split()[1])
    os.killpg(process.pid, signal.SIGKILL)
    # Its time is out after a minute, and a pipe ends with the last process that has it.
    process.communicate(timeout=30)
    wait_for(lambda: not psutil.pid_exists(inner) or psutil.Process(inner).status() == "zombie")


def test_what_raises_is_reported_and_the_next_runs(start: Start, tmp_path: Path) -> None:
    process = start(
        "smoke",
        "kernels",
        "kernel-bench",
        "equality",
        smoke="""
            def failing():
                yield {"case": "half of case 1"}
                raise ValueError("no such kernel")

            def cases():
                yield Case("case 0", plain("case 0"))
                yield Case("case 1", failing)
                yield Case("case 2", plain("case 2"))
        """,
        kernels="""
            def cases():
                yield Case("case 0", plain("case 0"))
                raise KeyError("no weights")
        """,
        kernel_bench="""
            import no_such_package
        """,
    )
    output, errors = process.communicate()
    assert process.returncode == 1
    assert cases_in(tmp_path, "smoke") == ["case 0", "half of case 1", "case 2"]
    assert cases_in(tmp_path, "kernels") == ["case 0"]
    assert cases_in(tmp_path, "equality") == ["case 0", "case 1", "case 2"]
    assert 'raise ValueError("no such kernel")' in errors
    lines = summary_of(output).splitlines()
    assert [line.split(":")[0] for line in lines if not line.startswith("    ")] == [
        "FAILED   smoke",
        "FAILED   kernels",
        "FAILED   kernel-bench",
        "ok       equality",
    ]
    assert "           failed: case 1: ValueError: no such kernel" in lines
    assert "           failed: KeyError: 'no weights'" in lines
    assert any("No module named 'no_such_package'" in line for line in lines)


def test_a_wrong_result_is_a_failure(start: Start) -> None:
    wrong = """
        def cases():
            yield Case("case 0", plain("decode", is_good=False))
            yield Case("case 1", plain("prefill", is_good=True))
    """
    process = start("kernels", kernels=wrong)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "FAILED   kernels: 2 results" in summary_of(output)
    assert "wrong: decode" in summary_of(output)


def test_nothing_is_measured_without_time(start: Start, tmp_path: Path) -> None:
    process = start("smoke", "kernels", environment={"SECONDS_PER_PART": "0"})
    output, _ = process.communicate()
    assert process.returncode == 1  # no part ran
    assert cases_in(tmp_path, "smoke") == []
    assert summary_of(output).count("left out for time: case 0; case 1; case 2") == 2
    assert "NOT RUN  smoke: 0 results" in summary_of(output)


def test_what_does_not_fit_the_budget_is_left_out(start: Start, tmp_path: Path) -> None:
    slow = """
        def cases():
            yield Case("first", plain("first"))
            yield Case("too long", plain("too long"), lambda: 1000.0)
            yield Case("short", plain("short"), lambda: 0.0)
            yield Case("waits", lambda: time.sleep(2.5) or [])
            yield Case("late", plain("late"))
    """
    process = start("smoke", "kernels", smoke=slow, environment={"SECONDS_PER_PART": "2"})
    output, _ = process.communicate()
    assert process.returncode == 0
    assert cases_in(tmp_path, "smoke") == ["first", "short"]
    assert "2 left out for time" in output
    assert "left out for time: too long; late\n" in summary_of(output)
    assert cases_in(tmp_path, "kernels") == ["case 0", "case 1", "case 2"]


POISONING = """
    def poison():
        yield {"case": "before the error"}
        machine.is_poisoned = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def cases():
        yield Case("case 0", plain("case 0"))
        yield Case("case 1", poison)
        yield Case("case 2", plain("case 2"))
"""
KILLING = """
    def cases():
        yield Case("case 0", plain("case 0"))
        yield Case("case 1", lambda: os.kill(os.getpid(), signal.SIGSEGV))
        yield Case("case 2", plain("case 2"))
"""
POISONING_BETWEEN = """
    def cases():
        yield Case("case 0", plain("case 0"))
        yield Case("case 1", plain("case 1"))
        yield Case("case 2", plain("case 2"))
        machine.is_poisoned = True
        raise RuntimeError("CUDA error: device-side assert triggered")
"""


@pytest.mark.parametrize(
    ("kernels", "found", "reported"),
    [
        pytest.param(
            POISONING,
            ["case 0", "before the error", "case 2"],
            "failed: case 1: RuntimeError: CUDA error: an illegal memory access",
            id="poisoned",
        ),
        pytest.param(
            KILLING,
            ["case 0", "case 2"],
            "failed: case 1: the process ended in it",
            id="killed",
        ),
        pytest.param(
            POISONING_BETWEEN,
            ["case 0", "case 1", "case 2"],
            "failed: RuntimeError: CUDA error: device-side assert triggered",
            id="poisoned between cases",
        ),
    ],
)
def test_another_process_goes_on_after_one_that_is_spoilt(
    kernels: str, found: list[str], reported: str, start: Start, tmp_path: Path
) -> None:
    process = start("smoke", "kernels", "equality", kernels=kernels)
    output, errors = process.communicate()
    assert process.returncode == 1
    assert output.count("a machine\n") == 2
    assert "the process ended with status" in errors
    assert cases_in(tmp_path, "smoke") == ["case 0", "case 1", "case 2"]
    assert cases_in(tmp_path, "kernels") == found
    assert cases_in(tmp_path, "equality") == ["case 0", "case 1", "case 2"]
    assert output.count("== smoke") == output.count("== equality") == 1
    assert summary_of(output).count(reported) == 1
    assert "ok       equality" in summary_of(output)


def test_a_new_process_has_what_is_left_of_the_budget(start: Start, tmp_path: Path) -> None:
    poisoning = """
        def slow(name):
            time.sleep(1.2)
            yield {"case": name}

        def poison():
            time.sleep(1.2)
            machine.is_poisoned = True
            raise RuntimeError("CUDA error")

        def cases():
            yield Case("case 0", poison)
            yield Case("case 1", lambda: slow("case 1"))
            yield Case("case 2", lambda: slow("case 2"))
    """
    process = start("smoke", smoke=poisoning, environment={"SECONDS_PER_PART": "2"})
    output, _ = process.communicate()
    assert "case 2" not in cases_in(tmp_path, "smoke")
    assert "case 2" in summary_of(output).partition("left out for time: ")[2]


def test_a_process_that_gets_nowhere_is_not_started_again(start: Start) -> None:
    process = start("smoke", machine='def describe():\n    raise SystemExit("no GPU here")\n')
    output, errors = process.communicate()
    assert process.returncode == 1
    assert errors.count("no GPU here") == 1
    assert summary_of(output) == "NOT RUN  smoke\n"


def test_a_run_out_of_time_still_says_what_it_found(start: Start, tmp_path: Path) -> None:
    hanging = """
        def cases():
            yield Case("case 0", plain("case 0"))
            yield Case("case 1", lambda: time.sleep(600))
    """
    process = start("smoke", "kernels", smoke=hanging, environment={"SECONDS_OVERALL": "2"})
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 124
    assert "out of time" in errors
    assert cases_in(tmp_path, "smoke") == ["case 0"]
    assert summary_of(output).startswith("CUT      smoke: 1 results")
    assert "cut in: case 1" in summary_of(output)
    assert "NOT RUN  kernels" in summary_of(output)
