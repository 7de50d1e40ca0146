"""The engine's loop on a real store, with a device that samples by rule."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from numpy.typing import NDArray

from trunkline.engine.admission import Admission, Limits
from trunkline.engine.core import Engine
from trunkline.engine.loop import Loop, LoopConfig
from trunkline.engine.plan_summary import PlanSummariser
from trunkline.engine.runner import DoneStep
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import Sequence as TokenSequence
from trunkline.engine.simulation.hardware import HARDWARE, MODEL_SHAPES
from trunkline.engine.step_plan import StepPlan, StepResult
from trunkline.store.batches import Batches
from trunkline.store.blobs import BlobsUnavailable, DiskBlobs
from trunkline.store.closing import Closing
from trunkline.store.database import Database
from trunkline.store.files import Files
from trunkline.store.outcomes import Outcomes
from trunkline.store.projects import DEFAULT_PROJECT_ID
from trunkline.store.records import EngineRecord, NewBatch, NewFile, NewRequest
from trunkline.store.states import BatchStatus
from trunkline.store.work import Work

MODEL = "counting"
EOS = 0


class LetterTokenizer:
    """A token for each letter."""

    eos_token_ids = frozenset([EOS])
    vocab_size = 128

    def encode_many(
        self, texts: Sequence[str], *, add_special_tokens: bool
    ) -> list[NDArray[np.int32]]:
        return [np.array([ord(c) for c in text], np.int32) for text in texts]

    def render_chat(self, messages: Any, template_kwargs: Any = None) -> str:
        return "".join(message["content"] for message in messages)

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


class RuleRunner:
    """Every answer is as many `x` as its prompt's last letter says, then the end."""

    lookahead = 1

    def __init__(self, seconds_per_step: float = 0.0) -> None:
        self.seconds_per_step = seconds_per_step

    def submit(self, plan: StepPlan, sequences: Mapping[int, TokenSequence]) -> DoneStep:
        time.sleep(self.seconds_per_step)
        sampling = plan.entry_samples
        slots = plan.entry_sequence[sampling]
        ends = (plan.entry_start + plan.entry_length)[sampling]
        tokens = []
        for slot, end in zip(slots.tolist(), ends.tolist(), strict=True):
            prompt = sequences[slot].prompt
            length = int(prompt[-1]) - ord("0")
            tokens.append(ord("x") if end - len(prompt) < length else EOS)
        return DoneStep(
            StepResult(plan.step, slots, np.array(tokens, np.int32), (None,) * len(tokens))
        )


class Bench:
    """A store, and loops on it."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.blobs = DiskBlobs(folder)
        self.batches = Batches(database, DEFAULT_PROJECT_ID)
        self.files = Files(database, DEFAULT_PROJECT_ID)
        self.outcomes = Outcomes(database)
        self.closing, self.work = Closing(database), Work(database, self.blobs)
        self.engine: Engine | None = None

    def batch(self, prompts: list[str], max_tokens: int = 50) -> str:
        """A batch in progress; its id."""
        with self.blobs.writer() as writer:
            requests = []
            for i, prompt in enumerate(prompts, start=1):
                body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens}
                line = json.dumps({"custom_id": str(i), "body": body}).encode()
                requests.append(NewRequest(i, str(i), writer.num_bytes, len(line)))
                writer.write(line + b"\n")
            blob = writer.commit()
        now = int(time.time())
        file = self.files.create(NewFile("in.jsonl", "batch", blob, None), now)
        new = NewBatch("/v1/completions", file.id, "24h", now + 86_400, None, None)
        batch_id = self.batches.create(new, now).id
        claim = self.closing.claim("test", now, 60)
        assert claim is not None
        self.closing.accept(claim, requests, MODEL, 0, now)
        return batch_id

    @contextmanager
    def loop(self, seconds_per_step: float = 0.0, name: str = "engine") -> Iterator[Loop]:
        config = SchedulerConfig(page_size=8, num_pages=500, max_batch_tokens=64)
        tokenizer: Any = LetterTokenizer()
        runner: Any = RuleRunner(seconds_per_step)
        self.engine = Engine(config, runner, tokenizer)
        loop = Loop(
            self.work,
            self.engine,
            Admission(tokenizer, Limits(200, config.capacity_tokens)),
            PlanSummariser(config, HARDWARE["cpu"], MODEL_SHAPES["smollm2-135m"]),
            EngineRecord(name, MODEL, "cpu", "float32", 0, time.time(), 200, {}),
            LoopConfig(lease_seconds=1.0, poll_seconds=0.02, commit_seconds=0.02),
        )
        failures: list[BaseException] = []

        def run() -> None:
            try:
                loop.run()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        yield loop
        loop.stop()
        thread.join(timeout=20)
        assert not thread.is_alive()
        assert failures == []

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def engine_has_work(self) -> bool:
        assert self.engine is not None
        return self.engine.has_work

    def status(self, batch_id: str) -> BatchStatus:
        return self.batches.get(batch_id).status

    def texts(self, batch_id: str) -> dict[int, str]:
        """The answers by line."""
        return {
            row.outcome.line: json.loads(row.outcome.body)["choices"][0]["text"]
            for row in self.outcomes.by_line(batch_id)
            if row.outcome.status_code == 200 and row.outcome.body is not None
        }


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    return Bench(database, tmp_path / "blobs")


def test_a_batch_is_answered(bench: Bench) -> None:
    batch_id = bench.batch(["say 3", "say 1", "say 9", "x" * 300])
    with bench.loop():
        bench.wait(lambda: bench.status(batch_id) is BatchStatus.FINALIZING)
    assert bench.texts(batch_id) == {1: "xxx", 2: "x", 3: "x" * 9}
    batch = bench.batches.get(batch_id)
    assert (batch.num_completed, batch.num_failed) == (3, 1)
    assert batch.num_output_tokens == 3 + 1 + 9 + 3
    plan = bench.batches.plan(batch_id)
    assert plan is not None
    assert plan["sequences"] == 3


def test_several_batches_at_once_and_one_that_comes_later(bench: Bench) -> None:
    ids = [bench.batch([f"batch {b} say {i % 10}" for i in range(40)]) for b in range(3)]
    with bench.loop(seconds_per_step=0.005):
        bench.wait(lambda: bench.batches.get(ids[0]).num_completed > 0)
        ids.append(bench.batch(["late 5", "late 6"]))
        bench.wait(lambda: all(bench.status(i) is BatchStatus.FINALIZING for i in ids))
    for batch_id in ids[:3]:
        assert bench.texts(batch_id) == {i + 1: "x" * (i % 10) for i in range(40)}
    assert bench.texts(ids[3]) == {1: "x" * 5, 2: "x" * 6}


def test_a_cancelled_batch_is_dropped_with_what_is_done(bench: Bench) -> None:
    batch_id = bench.batch([f"request {i} say 9" for i in range(400)])
    with bench.loop(seconds_per_step=0.02):
        bench.wait(lambda: bench.batches.get(batch_id).num_completed > 10)
        bench.batches.cancel(batch_id, int(time.time()))
        bench.wait(lambda: not bench.engine_has_work())
        # The engine has given the batch back, so that it can be closed.
        bench.wait(lambda: bench.closing.claim("server", time.time(), 60) is not None)
    done = bench.batches.get(batch_id).num_completed
    assert 10 < done < 400
    assert len(bench.texts(batch_id)) == done


def test_a_stopped_engine_leaves_the_rest_to_the_next(bench: Bench) -> None:
    batch_id = bench.batch([f"request {i} say {i % 10}" for i in range(200)])
    with bench.loop(seconds_per_step=0.02):
        bench.wait(lambda: bench.batches.get(batch_id).num_completed > 10)
    done = bench.texts(batch_id)
    assert 10 < len(done) < 200
    with bench.loop(name="another"):
        bench.wait(lambda: bench.status(batch_id) is BatchStatus.FINALIZING)
    texts = bench.texts(batch_id)
    assert texts == {i + 1: "x" * (i % 10) for i in range(200)}
    assert done.items() <= texts.items()


def test_a_new_engine_learns_from_what_a_former_one_has_answered(bench: Bench) -> None:
    opening = "the same opening of more than sixty-four letters, so that it is one template: "
    batch_id = bench.batch([f"{opening}{i:03} say {i % 4}" for i in range(200)])
    with bench.loop(seconds_per_step=0.02):
        bench.wait(lambda: bench.batches.get(batch_id).num_completed > 40)
    with bench.loop(seconds_per_step=0.05):
        bench.wait(bench.engine_has_work)
        assert bench.engine is not None
        waiting = bench.engine.scheduler.unfinished()[-1]
        assert waiting.sampling.max_tokens == 50
        assert bench.engine.output_lengths.expected(waiting) <= 4


def test_a_batch_whose_input_is_gone_ends_all_the_same(bench: Bench) -> None:
    batch_id = bench.batch(["say 1", "say 2"])
    file = bench.files.get(bench.batches.get(batch_id).input_file_id)
    bench.blobs.delete(file.blob_key)
    with bench.loop():
        bench.wait(lambda: bench.status(batch_id) is BatchStatus.FINALIZING)
    codes = [row.outcome.error_code for row in bench.outcomes.by_line(batch_id)]
    assert codes == ["input_file_gone"] * 2


def test_a_batch_taken_by_somebody_else_is_left_to_them(bench: Bench) -> None:
    batch_id = bench.batch([f"request {i} say 9" for i in range(300)])
    with bench.loop(seconds_per_step=0.02):
        bench.wait(lambda: bench.batches.get(batch_id).num_completed > 10)
        # As if this engine had been silent for longer than its lease.
        claim = bench.work.claim("thief", [MODEL], time.time() + 10, 600)
        assert claim is not None
        bench.wait(lambda: not bench.engine_has_work())
        done = bench.batches.get(batch_id).num_completed
        time.sleep(0.2)
        assert bench.batches.get(batch_id).num_completed == done
    assert len(list(bench.work.unfinished(claim))) == 300 - done


def test_a_paused_batch_waits_with_what_is_done(bench: Bench) -> None:
    batch_id = bench.batch([f"request {i} say 9" for i in range(200)])
    with bench.loop(seconds_per_step=0.02):
        bench.wait(lambda: bench.batches.get(batch_id).num_completed > 10)
        bench.batches.pause(batch_id, int(time.time()))
        bench.wait(lambda: not bench.engine_has_work())
        time.sleep(0.3)  # the last commit, and the release
        done = bench.batches.get(batch_id).num_completed
        assert 10 < done < 200
        time.sleep(0.3)
        assert bench.batches.get(batch_id).num_completed == done
        assert bench.status(batch_id) is BatchStatus.IN_PROGRESS
        before = bench.texts(batch_id)
        bench.batches.resume(batch_id)
        bench.wait(lambda: bench.status(batch_id) is BatchStatus.FINALIZING)
    texts = bench.texts(batch_id)
    assert before.items() <= texts.items()
    assert texts == {i + 1: "x" * 9 for i in range(200)}


def test_a_higher_priority_overtakes_what_is_held(bench: Bench) -> None:
    slow = bench.batch([f"request {i} say 9" for i in range(1500)])
    with bench.loop(seconds_per_step=0.02):
        bench.wait(lambda: bench.batches.get(slow).num_completed > 10)
        urgent = bench.batch([f"urgent {i} say 9" for i in range(30)])
        bench.batches.set_priority(urgent, 10)
        bench.wait(lambda: bench.status(urgent) is BatchStatus.FINALIZING)
        assert bench.status(slow) is BatchStatus.IN_PROGRESS
        assert bench.batches.get(slow).num_completed < 1000


def test_a_batch_whose_input_cannot_be_reached_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = bench.batch(["say 1", "say 2"])
    tries = []
    really_open = bench.blobs.open

    def open_(key: str) -> BinaryIO:
        tries.append(key)
        if len(tries) <= 3:
            raise BlobsUnavailable("the bucket cannot be reached")
        return really_open(key)

    monkeypatch.setattr(bench.blobs, "open", open_)
    with bench.loop():
        bench.wait(lambda: bench.status(batch_id) is BatchStatus.FINALIZING)
    assert bench.texts(batch_id) == {1: "x", 2: "xx"}
