"""The parts of the GPU benchmarks run, at toy size in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import missing

PARTS = ("kernels", "equality", "kernel-bench", "end-to-end", "profile", "peer")

# What a machine for GPU work has not got, and the benchmarks must do without.
ABSENT = (
    *("pydantic", "pydantic_settings", "fastapi", "sqlalchemy", "typer", "rich", "psycopg"),
    "llguidance",
)


def run(benchmarks: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """run.sh with an interpreter in which some modules cannot be imported."""
    absent = out / "absent"
    absent.mkdir()
    for name in ABSENT:
        (absent / f"{name}.py").write_text(f"raise ImportError('{name} is not installed here')\n")
    environment = {
        **os.environ,
        "OUT": str(out),
        "PYTHON": sys.executable,
        "PYTHONPATH": str(absent),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [benchmarks / "gpu" / "run.sh", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.interpreter
@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(("kernels", "equality"), id="two"),
        pytest.param((), id="every one", marks=pytest.mark.slow),
    ],
)
def test_parts_run_as_toys(chosen: tuple[str, ...], benchmarks: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("triton") is None:
        missing("Triton is not installed")
    done = run(benchmarks, tmp_path, "--toy", *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stem for path in tmp_path.glob("gpu-*.jsonl")} == {
        f"gpu-{part}" for part in chosen or PARTS
    }
    for part in chosen or PARTS:
        lines = (tmp_path / f"gpu-{part}.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert records
        assert {record["part"] for record in records} == {f"gpu-{part}"}
    assert "no results" not in done.stdout
    assert "WRONG" not in done.stdout


def test_an_unknown_part_is_refused(benchmarks: Path, tmp_path: Path) -> None:
    done = run(benchmarks, tmp_path, "kernel")
    assert done.returncode == 2
    assert "no part 'kernel'" in done.stderr
    assert "kernel-bench" in done.stderr
