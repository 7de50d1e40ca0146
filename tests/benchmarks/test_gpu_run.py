"""The parts of the GPU benchmarks run, at toy size in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.markdown import render
from harness.rows import Row, read_rows, write_rows

from tests.support import missing

USUAL_PARTS = ("smoke", "kernels", "kernel-bench", "end-to-end", "profile", "equality")

# What a machine for GPU work has not got, and the benchmarks must do without.
ABSENT = (
    *("pydantic", "pydantic_settings", "fastapi", "sqlalchemy", "typer", "rich", "psycopg"),
    *("llguidance", "openai"),
)


# Answers like vLLM, with the first token of each prompt, and prints while it is imported.
VLLM = """
import time
from types import SimpleNamespace

__version__ = "0.0.1"
print("a line that is no reply")
SamplingParams = SimpleNamespace

class LLM:
    def __init__(self, **arguments):
        assert arguments["enable_prefix_caching"]
        assert arguments["kv_cache_memory_bytes"] > 0

    def reset_prefix_cache(self):
        pass

    def generate(self, prompts, sampling, use_tqdm):
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        assert ids == sorted(ids)
        time.sleep(0.01)
        outputs = [each[:1] * one.max_tokens for each, one in zip(ids, sampling, strict=True)]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)]) for ids in outputs]
"""


def run(
    benchmarks: Path, out: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
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
        "BENCHMARK_COMMIT": "a copy",
        **variables,
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
        pytest.param(("smoke", "kernels"), id="two"),
        pytest.param((), id="the usual ones", marks=pytest.mark.slow),
        pytest.param(("peer",), id="peer", marks=pytest.mark.slow),
    ],
)
def test_parts_run_as_toys(chosen: tuple[str, ...], benchmarks: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("triton") is None:
        missing("Triton is not installed")
    done = run(benchmarks, tmp_path, "--toy", *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = chosen or USUAL_PARTS
    files = {path.name for path in tmp_path.glob("gpu-*")}
    assert files == {f"gpu-{part}.jsonl" for part in (*parts, "visit")}
    for part in parts:
        lines = (tmp_path / f"gpu-{part}.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert records
        assert {record["part"] for record in records} == {f"gpu-{part}"}
        assert {record["commit"] for record in records} == {"a copy"}
        assert all({"device", "torch", "triton", "flops", "bandwidth"} <= r.keys() for r in records)
        assert f"ok       {part}: {len(records)} results" in done.stdout.split("== summary")[1]
    assert "WRONG" not in done.stdout


@pytest.mark.interpreter
@pytest.mark.slow  # the quick ones write no rows of whole workloads
def test_rows_of_whole_workloads_are_read_again(benchmarks: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("triton") is None:
        missing("Triton is not installed")
    done = run(benchmarks, tmp_path, "--toy", "end-to-end")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_rows(tmp_path / "gpu-end-to-end.jsonl")
    settings = [row.engine.removeprefix("trunkline ") for row in rows]
    assert settings[:3] == ["planned+planned", "planned+planned", "fcfs+lru grouping=off"]
    plans = {row.step_tokens: row.median_seconds for row in rows[:2]}
    assert list(plans) == [32, 48]
    assert rows[2].step_tokens == min(plans, key=lambda tokens: plans[tokens])
    assert rows[2].ratios == [
        pytest.approx(rows[2].median_seconds / plans[rows[2].step_tokens], abs=1e-3)
    ]
    assert all(row.floor_s is not None and row.lower_bound_s is not None for row in rows)


@pytest.mark.interpreter
@pytest.mark.slow  # as above
def test_the_peer_follows_when_ours_has_ended(benchmarks: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("triton") is None:
        missing("Triton is not installed")
    packages = tmp_path / "packages"
    (packages / "vllm").mkdir(parents=True)
    (packages / "vllm" / "__init__.py").write_text(VLLM)
    done = run(benchmarks, tmp_path, "--toy", "peer", PEER_PACKAGES=str(packages))
    assert done.returncode == 0, done.stdout + done.stderr
    ours, peer = read_rows(tmp_path / "gpu-peer.jsonl")
    assert (ours.engine, ours.ratios) == ("trunkline planned+planned", [1.0])
    assert (peer.engine, peer.version, peer.not_measured) == ("vllm_gpu", "0.0.1", None)
    assert peer.output_tokens == ours.output_tokens
    assert peer.floor_s == ours.floor_s
    assert len(peer.ratios) == 1
    assert "a line that is no reply" in (tmp_path / "vllm.log").read_text()


def test_an_unknown_part_is_refused(benchmarks: Path, tmp_path: Path) -> None:
    done = run(benchmarks, tmp_path, "kernel")
    assert done.returncode == 2
    assert "no part 'kernel'" in done.stderr
    assert "kernel-bench" in done.stderr


def test_a_row_whose_plan_another_process_ran_is_shown(tmp_path: Path) -> None:
    row = Row(
        part="gpu-end-to-end",
        workload="W1-16",
        size="2000/200/100 in groups of 16; 640 requests",
        engine="trunkline fcfs+lru",
        version="0.1.0",
        model="Llama-3.1-8B",
        dtype="bfloat16",
        device="a GPU",
        commit="abc1234",
        seconds=[12.0],
        prompt_tokens=1000,
        computed_prompt_tokens=400,
        step_tokens=4096,
        floor_s=6.0,
    )
    write_rows(tmp_path / "gpu-end-to-end.jsonl", [row])
    cells = "| W1-16 | trunkline fcfs+lru 0.1.0, steps of 4,096 |  | one run | 60% |  | 50% |"
    assert cells in render(tmp_path)
