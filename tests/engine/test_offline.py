"""A batch file without a server: what is written, what an earlier run left, what is refused."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from trunkline.engine.config import Device, Dtype, EngineConfig
from trunkline.engine.core import Engine
from trunkline.engine.offline import OfflineError, RunStats, plan_file, run_file
from trunkline.engine.request import Request

MODEL = "small"
pytestmark = pytest.mark.usefixtures("one_thread")


class Desk:
    """A folder with a batch file, and runs of it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.source = folder / "in.jsonl"
        self.output = folder / "out.jsonl"
        self.errors = folder / "errors.jsonl"
        self.config = EngineConfig(
            model=str(model),
            served_model_name=MODEL,
            device=Device.CPU,
            dtype=Dtype.FLOAT32,
            threads=1,
            kv_cache_bytes=2**22,
            max_batch_tokens=32,
        )

    def write(self, *bodies: dict[str, Any], model: str = MODEL) -> None:
        lines = [
            {"custom_id": f"id-{i}", "method": "POST", "url": "/v1/completions"}
            | {"body": {"model": model, "max_tokens": 4, "temperature": 0, **body}}
            for i, body in enumerate(bodies)
        ]
        self.source.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(self) -> RunStats:
        return run_file(self.config, self.source, self.output, self.errors)

    def results(self) -> dict[str, Any]:
        """The response of each request that was answered; none may come twice."""
        records = [json.loads(line) for line in self.output.read_text().splitlines()]
        found = {record["custom_id"]: record["response"] for record in records}
        assert len(found) == len(records)
        return found


@pytest.fixture
def desk(tmp_path: Path, small_folder: Path) -> Desk:
    return Desk(tmp_path, small_folder)


PROMPTS = [{"prompt": f"Sheep number {i} jumps over the fence"} for i in range(12)]


def test_answers_and_failures_go_to_files_of_their_own(desk: Desk) -> None:
    desk.write(*PROMPTS[:3], {"prompt": "Hot", "temperature": 9})
    stats = desk.run()
    assert set(desk.results()) == {"id-0", "id-1", "id-2"}
    usages = [response["body"]["usage"] for response in desk.results().values()]
    (failure,) = map(json.loads, desk.errors.read_text().splitlines())
    assert failure["custom_id"] == "id-3"
    assert failure["response"]["body"]["error"]["param"] == "temperature"
    assert (stats.requests, stats.failed, stats.already_done) == (4, 1, 0)
    assert stats.output_tokens == sum(usage["completion_tokens"] for usage in usages) == 12
    assert stats.prompt_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert stats.computed_prompt_tokens <= stats.prompt_tokens
    assert "4 requests in" in stats.summary()


def test_a_run_without_failures_leaves_no_file_of_them(desk: Desk) -> None:
    desk.write(PROMPTS[0])
    assert desk.run().failed == 0
    assert not desk.errors.exists()


def test_what_was_done_before_is_not_done_again(desk: Desk) -> None:
    desk.write(*PROMPTS, {"prompt": "Hot", "temperature": 9})
    desk.run()
    whole, failure = desk.results(), desk.errors.read_text()
    lines = desk.output.read_text().splitlines(keepends=True)
    desk.output.write_text("".join(lines[:5]) + lines[5][:40])  # cut off in the middle
    stats = desk.run()
    assert (stats.requests, stats.already_done) == (7, 6)

    def texts(results: dict[str, Any]) -> dict[str, str]:
        return {name: each["body"]["choices"][0]["text"] for name, each in results.items()}

    assert texts(desk.results()) == texts(whole)
    assert desk.errors.read_text() == failure
    stats = desk.run()
    assert (stats.requests, stats.already_done, stats.load_seconds) == (0, 13, 0)
    assert "all 13 requests were done before" in stats.summary()


def test_an_interrupted_run_keeps_what_is_answered(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[Request] = []
    step = Engine.step

    def interrupted_step(engine: Engine) -> list[Request]:
        found = step(engine)
        finished.extend(found)
        if found:
            signal.raise_signal(signal.SIGINT)
        return found

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Engine, "step", interrupted_step)
    desk.write(*PROMPTS)
    stats = desk.run()
    assert stats.interrupted
    assert 0 < len(finished) < len(PROMPTS)
    assert stats.requests == len(desk.results()) == len(finished)
    assert "run the same command again" in stats.summary()
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    assert not desk.run().interrupted
    assert len(desk.results()) == len(PROMPTS)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ('{"custom_id": "other"}\n', "holds results of other requests"),
        ('{"custom_id": "id-0"}\n3\n', "line 2 is not a result of an earlier run"),
    ],
)
def test_an_output_of_something_else_is_left_alone(desk: Desk, output: str, message: str) -> None:
    desk.write(*PROMPTS)
    desk.output.write_text(output)
    with pytest.raises(OfflineError, match=message):
        desk.run()
    assert desk.output.read_text() == output


def test_what_cannot_be_run(desk: Desk) -> None:
    with pytest.raises(OfflineError, match=r"cannot read .*in\.jsonl: No such file"):
        desk.run()
    desk.source.write_text("nonsense\n")
    with pytest.raises(OfflineError, match="is not a batch file:\nline 1"):
        desk.run()
    desk.write(*PROMPTS, model="another")
    with pytest.raises(OfflineError, match="ask for the model 'another', and 'small' is loaded"):
        desk.run()
    assert not desk.output.exists()


def test_a_plan_counts_what_is_shared(desk: Desk) -> None:
    stem = "All sheep are counted before they jump over the fence of the meadow, one by one, as "
    bodies = [{"prompt": f"{stem}{i}", "n": 2} for i in range(6)]
    desk.write(*bodies, {"prompt": "Hot", "temperature": 9})
    plan = plan_file(desk.config, desk.source)
    assert len(plan.items) == 12
    assert all(item.num_output_tokens == 4 for item in plan.items)
    assert plan.savings.logical_tokens == sum(len(item.prompt) for item in plan.items)
    assert plan.savings.unique_tokens == plan.tree.unique_tokens < plan.savings.logical_tokens
