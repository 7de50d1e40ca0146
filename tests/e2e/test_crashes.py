"""Processes are killed in the middle of a batch; nothing is lost and nothing is done twice."""

from __future__ import annotations

import re
from typing import Any

import pytest

MODEL = "SmolLM2-135M-Instruct"


# Few requests at once, so that a batch takes long enough to be interrupted on a fast machine.
SLOWLY = ("--max-batch-tokens", "8", "--commit-seconds", "0.1")


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
                "max_tokens": 24 + 37 * i % 97,
                "temperature": 0,
                "ignore_eos": True,
            },
        }
        for i in range(count)
    ]


class Job:
    """A batch on an installation, seen through the official client."""

    def __init__(self, installation: Any, lines: list[dict[str, Any]]) -> None:
        self.installation = installation
        self.lines = lines
        self.id = installation.submit("/v1/chat/completions", lines).id

    def get(self) -> Any:
        return self.installation.client.batches.retrieve(self.id)

    def wait_for_completed(self, count: int) -> int:
        """Wait until at least `count` requests are completed; how many are."""
        self.installation.wait_for(lambda: self.get().request_counts.completed >= count, 120)
        return int(self.get().request_counts.completed)

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


def test_an_engine_killed_three_times(installation: Any) -> None:
    installation.start(*SLOWLY)
    job = Job(installation, make_lines(80))
    done_before_each_run = [0]
    for kill in range(1, 4):
        job.wait_for_completed(12 * kill)
        installation.kill_engine()
        done_before_each_run.append(job.get().request_counts.completed)
        installation.wait_for(lambda n=kill + 1: len(runs(installation.log)) == n, 120)
    batch = job.wait_for_end()
    assert batch.status == "completed"
    check_answers(job, batch)
    # What was committed when the engine died was not run again.
    assert runs(installation.log) == [80 - done for done in done_before_each_run]


def test_everything_killed_at_once(installation: Any) -> None:
    installation.start(*SLOWLY)
    job = Job(installation, make_lines(60))
    job.wait_for_completed(10)
    installation.kill()
    installation.start(*SLOWLY)
    batch = job.wait_for_end()
    assert batch.status == "completed"
    check_answers(job, batch)
    first, second = runs(installation.log)
    assert first == 60
    assert second <= 50
    assert installation.stop() == 0


@pytest.mark.parametrize("kill_meanwhile", [False, True])
def test_a_batch_cancelled_half_way(installation: Any, kill_meanwhile: bool) -> None:
    installation.start(*SLOWLY)
    job = Job(installation, make_lines(80))
    job.wait_for_completed(10)
    if kill_meanwhile:
        installation.kill_engine()
    installation.client.batches.cancel(job.id)
    batch = job.wait_for_end()
    assert batch.status == "cancelled"
    results, errors = job.results(batch.output_file_id), job.results(batch.error_file_id)
    assert len(results) >= 10
    assert len(errors) > 0
    ids = sorted(record["custom_id"] for record in results + errors)
    assert ids == sorted(line["custom_id"] for line in job.lines)
    assert {record["error"]["code"] for record in errors} == {"batch_cancelled"}
    assert batch.request_counts.completed == len(results)
    assert batch.request_counts.failed == 0


def test_stopping_and_starting_keeps_what_is_done(installation: Any) -> None:
    installation.start(*SLOWLY)
    job = Job(installation, make_lines(60))
    job.wait_for_completed(10)
    assert installation.stop() == 0
    installation.start(*SLOWLY)
    batch = job.wait_for_end()
    check_answers(job, batch)
    first, second = runs(installation.log)
    assert first == 60
    assert second <= 50
