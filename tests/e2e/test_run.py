"""`trunkline run` and `trunkline plan` as programs, on the demo's batch."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.braking import Brake
from tests.e2e.small_engine import MODEL, small_engine
from tests.models import small_model
from tests.support import wait_for

pytestmark = pytest.mark.e2e

SECONDS = 240  # only what hangs takes so long
# After so many steps some of the sample are answered and others are not.
NUM_STEPS = 100


def trunkline(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trunkline", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
    )


def sample() -> bytes:
    return files("trunkline.server.demo").joinpath("requests.jsonl").read_bytes()


def answers(text: str) -> dict[str, str]:
    """The answer of each custom_id; none may come twice."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        result = json.loads(line)
        assert result["custom_id"] not in found
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
        choice = result["response"]["body"]["choices"][0]
        found[result["custom_id"]] = choice["message"]["content"]
    return found


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_run_answers_like_the_server_and_goes_on_after_an_interruption(
    installation: Any, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(sample())
    num_requests = len(sample().splitlines())
    command = ("run", "-i", source, "-o", output, *small_engine())

    brake = Brake(tmp_path / "brake")
    brake.allow(NUM_STEPS)
    process = trunkline(*command, **brake.environment)
    num_done = brake.wait().num_answered
    # The output grows while the run goes on.
    wait_for(lambda: count_lines(output) == num_done, SECONDS)
    brake.allow(NUM_STEPS + 20)
    num_done = brake.wait().num_answered
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, error
    assert "run the same command again for the rest" in error
    done = answers(output.read_text())
    assert 0 < len(done) == num_done < num_requests

    with output.open("a") as file:
        file.write('{"custom_id": "cut off in the mid')
    stats_path = tmp_path / "stats.json"
    process = trunkline(*command, "--stats", stats_path)
    _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, error
    stats = json.loads(stats_path.read_text())
    assert stats["requests"] == num_requests - len(done)
    assert stats["already_done"] == len(done)
    assert stats["computed_prompt_tokens"] < stats["prompt_tokens"]
    by_run = answers(output.read_text())
    assert len(by_run) == num_requests
    assert done.items() <= by_run.items()

    process = trunkline(*command)
    _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert f"all {num_requests} requests were done before" in error

    installation.start(*small_engine(), "--max-batch-tokens", "256")
    client = installation.client
    uploaded = client.files.create(file=("x.jsonl", io.BytesIO(sample())), purpose="batch")
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    installation.wait_for(lambda: client.batches.retrieve(batch.id).status == "completed", SECONDS)
    batch = client.batches.retrieve(batch.id)
    assert answers(client.files.content(batch.output_file_id).text) == by_run

    shown = httpx.get(f"{client.base_url}batches/{batch.id}/plan").json()
    assert shown["plan"]["sequences"] == num_requests
    assert shown["plan"]["saved_share"] == pytest.approx(shown["actual_saved_share"])
    assert shown["plan"]["groups"]
    assert shown["plan"]["predicted_seconds"] > 0
    assert shown["actual_seconds"] >= 0


def test_a_bad_line_fails_alone_and_the_exit_status_says_so(tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bodies: list[dict[str, Any]] = [
        {"model": MODEL, "prompt": "One, two, three,", "max_tokens": 4, "temperature": 0},
        {"model": MODEL, "prompt": "far too long", "max_tokens": 100_000},
        {"model": MODEL, "prompt": "Hot", "temperature": 9},
        {"model": MODEL, "prompt": [[1, 2, 3], [4, 5]], "max_tokens": 2, "n": 2},
    ]
    source.write_text(
        "".join(
            json.dumps({"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": b})
            + "\n"
            for i, b in enumerate(bodies)
        )
    )
    process = trunkline("run", "-i", source, "-o", output, *small_engine())
    _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "2 requests failed" in error
    results = {(r := json.loads(line))["custom_id"]: r for line in output.read_text().splitlines()}
    assert set(results) == {"0", "3"}
    choices = results["3"]["response"]["body"]["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert results["3"]["response"]["body"]["usage"]["prompt_tokens"] == 5
    failures = {
        (r := json.loads(line))["custom_id"]: r["response"]
        for line in (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()
    }
    assert {r["status_code"] for r in failures.values()} == {400}
    long = failures["1"]["body"]["error"]
    assert "maximum context length is 8192 tokens" in long["message"]
    assert "100000 in the completion" in long["message"]
    assert failures["2"]["body"]["error"]["param"] == "temperature"


def test_a_file_that_is_no_batch_is_refused_with_every_error(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('nonsense\n{"custom_id": "a"}\n')
    process = trunkline("run", "-i", source, "-o", tmp_path / "out.jsonl", *small_engine())
    _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "line 1: This line is not parseable as valid JSON." in error
    assert "line 2: Missing required parameter: 'method'." in error
    assert not (tmp_path / "out.jsonl").exists()


def test_plan_prints_its_numbers(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(sample())
    process = trunkline("plan", source, "--json", "--model", small_model())
    text, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, error
    plan = json.loads(text)
    assert set(plan) == {
        "prompts",
        "logical_tokens",
        "unique_tokens",
        "saved_share",
        "saved_share_single_exact",
        "saved_share_single_greedy",
        "groups",
        "tree_nodes",
        "peak_kv_tokens",
        "tokenize_seconds",
        "plan_seconds",
    }
    assert plan["prompts"] == len(sample().splitlines())
    assert plan["saved_share"] > plan["saved_share_single_exact"] > 0.5
