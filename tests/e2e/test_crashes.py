"""Processes are killed in the middle of a batch; nothing is lost and nothing is done twice.

A brake holds the engine where a test wants it: what dies is the same on a machine of any speed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.braking import Brake
from tests.e2e.small_engine import MODEL, small_engine

pytestmark = pytest.mark.e2e

# Few requests at once, so that after so many steps some are answered and others are not.
FEW_AT_ONCE = ("--max-batch-tokens", "8")
NUM_STEPS = 100
COMMITS_AT_ONCE = ("--commit-seconds", "0.1")
# What is answered stays in the engine's memory, which still holds its batch.
COMMITS_AT_THE_END = ("--commit-seconds", "3600", "--lease-seconds", "3600")


@pytest.fixture
def brake(installation: Any, tmp_path: Path) -> Iterator[Brake]:
    """Holds the installation's engine after some steps, until it is released."""
    made = Brake(tmp_path / "brake")
    installation.environment |= made.environment
    made.allow(NUM_STEPS)
    yield made
    made.release()


def make_lines(count: int) -> list[dict[str, Any]]:
    """Requests that take a while, and do not all end at the same time."""
    return [
        {
            "custom_id": f"request-{i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": MODEL,
                "messages": [
                    {"role": "system", "content": "You are a careful assistant. " * 8},
                    {"role": "user", "content": f"Tell me something about the number {i}."},
                ],
                "max_tokens": 12 + 37 * i % 49,
                "temperature": 0,
                "ignore_eos": True,
            },
        }
        for i in range(count)
    ]


class Job:
    """A batch on an installation, seen through the official client."""

    def __init__(self, installation: Any, brake: Brake, num_lines: int) -> None:
        self.installation = installation
        self.brake = brake
        self.lines = make_lines(num_lines)
        self.id = installation.submit("/v1/chat/completions", self.lines).id

    def get(self) -> Any:
        return self.installation.client.batches.retrieve(self.id)

    @property
    def num_completed(self) -> int:
        return int(self.get().request_counts.completed)

    def wait_until_held(self) -> int:
        """Wait until the engine stands still; how many requests it has answered."""
        num_answered = self.brake.wait().num_answered
        assert 0 < num_answered < len(self.lines)
        return num_answered

    def wait_until_held_and_committed(self) -> int:
        """Wait until the engine stands still with all answers committed; how many requests are."""
        num_before = self.num_completed
        num_wanted = num_before + self.wait_until_held()
        self.installation.wait_for(lambda: self.num_completed >= num_wanted, 120)
        assert self.num_completed == num_wanted
        return num_wanted

    def wait_for_end(self) -> Any:
        return self.installation.wait_for_end(self.id)

    def results(self, file_id: str | None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.installation.results(file_id)
        return found


def check_answers(job: Job, batch: Any) -> None:
    """Every custom_id is answered once, in full."""
    max_tokens = {line["custom_id"]: line["body"]["max_tokens"] for line in job.lines}
    results = job.results(batch.output_file_id)
    assert sorted(r["custom_id"] for r in results) == sorted(r["custom_id"] for r in job.lines)
    assert len({r["id"] for r in results}) == len(results)
    for result in results:
        assert result["error"] is None
        assert (
            result["response"]["body"]["usage"]["completion_tokens"]
            == max_tokens[result["custom_id"]]
        )
    assert batch.error_file_id is None
    assert batch.request_counts.model_dump() == {
        "total": len(job.lines),
        "completed": len(job.lines),
        "failed": 0,
    }


def runs(log: str) -> list[int]:
    """How many requests the engine began with, each time it took the batch."""
    return [int(count) for count in re.findall(r"running (\d+) requests", log)]


def test_an_engine_killed_three_times(installation: Any, brake: Brake) -> None:
    installation.start(*small_engine(), *FEW_AT_ONCE, *COMMITS_AT_ONCE)
    job = Job(installation, brake, 80)
    done_before_each_run = [0]
    for _ in range(3):
        done_before_each_run.append(job.wait_until_held_and_committed())
        installation.kill_engine()
        brake.allow(NUM_STEPS)
    brake.release()
    batch = job.wait_for_end()
    assert batch.status == "completed"
    check_answers(job, batch)
    # What was committed when the engine died was not run again.
    assert runs(installation.log) == [80 - done for done in done_before_each_run]


@pytest.mark.parametrize("is_committed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_everything_killed_at_once(installation: Any, brake: Brake, is_committed: bool) -> None:
    options = (*small_engine(), *FEW_AT_ONCE)
    installation.start(*options, *(COMMITS_AT_ONCE if is_committed else COMMITS_AT_THE_END))
    job = Job(installation, brake, 60)
    if is_committed:
        num_done = job.wait_until_held_and_committed()
    else:
        job.wait_until_held()
        num_done = job.num_completed
        assert num_done == 0
    installation.kill()
    brake.release()
    installation.start(*options, *COMMITS_AT_ONCE)
    batch = job.wait_for_end()
    assert batch.status == "completed"
    check_answers(job, batch)
    assert runs(installation.log) == [60, 60 - num_done]
    assert installation.stop() == 0


@pytest.mark.parametrize("kill_meanwhile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_batch_cancelled_half_way(installation: Any, brake: Brake, kill_meanwhile: bool) -> None:
    installation.start(*small_engine(), *FEW_AT_ONCE, *COMMITS_AT_ONCE)
    job = Job(installation, brake, 80)
    num_done = job.wait_until_held_and_committed()
    if kill_meanwhile:
        brake.allow(0)
        installation.kill_engine()
    installation.client.batches.cancel(job.id)
    batch = job.wait_for_end()
    assert batch.status == "cancelled"
    results, errors = job.results(batch.output_file_id), job.results(batch.error_file_id)
    assert len(results) == num_done
    assert len(errors) == 80 - num_done
    ids = sorted(record["custom_id"] for record in results + errors)
    assert ids == sorted(line["custom_id"] for line in job.lines)
    assert {record["error"]["code"] for record in errors} == {"batch_cancelled"}
    assert batch.request_counts.completed == len(results)
    assert batch.request_counts.failed == 0


def test_stopping_and_starting_keeps_what_is_done(installation: Any, brake: Brake) -> None:
    options = (*small_engine(), *FEW_AT_ONCE)
    installation.start(*options, *COMMITS_AT_THE_END)
    job = Job(installation, brake, 60)
    num_done = job.wait_until_held()
    assert job.num_completed == 0
    # Whoever stops commits what is done.
    assert installation.stop() == 0
    brake.release()
    installation.start(*options, *COMMITS_AT_ONCE)
    batch = job.wait_for_end()
    check_answers(job, batch)
    assert runs(installation.log) == [60, 60 - num_done]
