"""Clock, record files and the commit's name, of which a run of the GPU benchmarks is made."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from gpu.clock import Clock
from gpu.results import RecordFile
from harness.rows import commit_name


def test_clock_counts_from_the_moment_given() -> None:
    now = 100.0
    clock = Clock(90.0, 30.0, now=lambda: now)
    assert clock.left == 20.0
    assert clock.allows()
    assert clock.allows(19.0)
    assert not clock.allows(20.0)
    now = 121.0
    assert clock.left == -1.0
    assert not clock.allows()


def test_numbers_that_json_has_no_word_for_are_refused(tmp_path: Path) -> None:
    with closing(RecordFile(tmp_path / "rows.jsonl")) as file:
        file.append({"case": "good"})
        with pytest.raises(ValueError, match="JSON"):
            file.append({"case": "bad", "error": float("nan")})
    assert (tmp_path / "rows.jsonl").read_text() == '{"case": "good"}\n'


def test_a_commit_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARK_COMMIT", "abc1234-copied")
    assert commit_name() == "abc1234-copied"
