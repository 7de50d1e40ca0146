"""A store with loops on it, and a device that samples by rule, as far as a test lets it."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.letters import EOS, LetterTokenizer, letter_admission
from tests.support import HANG_SECONDS, wait_for
from trunkline.engine.admission import Admission
from trunkline.engine.core import Engine
from trunkline.engine.loop import Loop, LoopConfig
from trunkline.engine.plan_summary import PlanSummariser
from trunkline.engine.request import Line, Refusal, Request
from trunkline.engine.runner import DoneStep
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import Sequence as TokenSequence
from trunkline.engine.simulation.hardware import HARDWARE, MODEL_SHAPES
from trunkline.engine.step_plan import StepPlan, StepResult
from trunkline.store.batches import Batches
from trunkline.store.blobs import DiskBlobs
from trunkline.store.closing import Closing
from trunkline.store.database import Database
from trunkline.store.files import Files
from trunkline.store.live import LiveRequests, LiveWork, NewLiveRequest
from trunkline.store.outcomes import Outcomes
from trunkline.store.projects import DEFAULT_PROJECT_ID
from trunkline.store.records import Claim, EngineRecord, Held, NewBatch, NewFile, NewRequest
from trunkline.store.states import BatchStatus
from trunkline.store.work import Work

MODEL = "counting"
LONG_SECONDS = 3600.0


class RuleRunner:
    """Every answer is as many `x` as its prompt's last letter says, then the end.

    It takes as many steps as it is told to, and holds the engine up before the next.
    """

    lookahead = 1

    def __init__(self) -> None:
        self._changes = threading.Condition()
        self._num_steps = 0
        self._num_answers = 0
        self._most_steps = self._most_answers = math.inf
        self.is_held = False

    def go(self, *, steps: float = math.inf, answers: float = math.inf) -> None:
        """Go on for so many steps, or until a step has ended so many more answers."""
        with self._changes:
            self._most_steps = self._num_steps + steps
            self._most_answers = self._num_answers + answers
            self.is_held = False
            self._changes.notify_all()

    def submit(
        self, plan: StepPlan, sequences: Mapping[int, TokenSequence], masks: None = None
    ) -> DoneStep:
        with self._changes:
            while self._num_steps >= self._most_steps or self._num_answers >= self._most_answers:
                self.is_held = True
                self._changes.wait()
            self._num_steps += 1
        sampling = plan.entry_samples
        slots = plan.entry_sequence[sampling]
        ends = (plan.entry_start + plan.entry_length)[sampling]
        tokens = []
        for slot, end in zip(slots.tolist(), ends.tolist(), strict=True):
            prompt = sequences[slot].prompt
            length = int(prompt[-1]) - ord("0")
            tokens.append(ord("x") if end - len(prompt) < length else EOS)
        with self._changes:
            self._num_answers += tokens.count(EOS)
        return DoneStep(
            StepResult(plan.step, slots, np.array(tokens, np.int32), (None,) * len(tokens))
        )


class CountedAdmission:
    """Counts the live requests that were taken in."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.num_live = 0

    def admit(self, lines: Iterable[Line]) -> Iterator[Request | Refusal]:
        num_live = 0
        for admitted in self._admission.admit(lines):
            yield admitted
            num_live += admitted.line.is_live
        self.num_live += num_live


class PatientWork(Work):
    """Its leases do not lapse when this machine has no time to renew them."""

    num_claims = 0

    def claim(
        self, holder: str, models: Sequence[str], now: float, lease_seconds: float
    ) -> Claim | None:
        claim = super().claim(holder, models, now, LONG_SECONDS)
        self.num_claims += 1
        return claim

    def heartbeat(
        self,
        name: str,
        figures: dict[str, Any],
        claims: Sequence[Claim],
        now: float,
        lease_seconds: float,
    ) -> dict[str, Held]:
        return super().heartbeat(name, figures, claims, now, LONG_SECONDS)


class Bench:
    """A store, and loops on it."""

    engine: Engine
    runner: RuleRunner
    admission: CountedAdmission
    running: Loop

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self.live = LiveRequests(database)
        self.blobs = DiskBlobs(folder)
        self.batches = Batches(database, DEFAULT_PROJECT_ID)
        self.files = Files(database, DEFAULT_PROJECT_ID)
        self.outcomes = Outcomes(database)
        self.closing, self.work = Closing(database), PatientWork(database, self.blobs)

    def batch(self, prompts: list[str], max_tokens: int = 50, priority: int = 0) -> str:
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
        new = NewBatch(
            "/v1/completions", file.id, "24h", now + 86_400, None, None, priority=priority
        )
        batch_id = self.batches.create(new, now).id
        claim = self.closing.claim("test", now, 60)
        assert claim is not None
        self.closing.accept(claim, requests, MODEL, 0, now)
        return batch_id

    @contextmanager
    def loop(
        self,
        name: str = "engine",
        *,
        steps: float = math.inf,
        answers: float = math.inf,
        heartbeat_seconds: float = 0.05,
    ) -> Iterator[Loop]:
        """An engine that works until the end of the block; how far its device goes: see `go`."""
        config = SchedulerConfig(page_size=8, num_pages=500, max_batch_tokens=64)
        tokenizer: Any = LetterTokenizer()
        self.runner = RuleRunner()
        self.runner.go(steps=steps, answers=answers)
        runner: Any = self.runner
        self.engine = Engine(config, runner, tokenizer)
        self.admission = CountedAdmission(letter_admission(tokenizer, config.capacity_tokens))
        loop = self.running = Loop(
            self.work,
            LiveWork(self._database),
            self.engine,
            self.admission,
            PlanSummariser(config, HARDWARE["cpu"], MODEL_SHAPES["smollm2-135m"]),
            EngineRecord(name, MODEL, "cpu", "float32", 0, time.time(), 200, {}),
            LoopConfig(
                lease_seconds=10 * heartbeat_seconds, poll_seconds=0.02, commit_seconds=0.02
            ),
        )
        failures: list[BaseException] = []

        def run() -> None:
            try:
                loop.run()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield loop
        finally:
            loop.stop()
            self.runner.go()
            thread.join(timeout=HANG_SECONDS)
        assert not thread.is_alive()
        assert failures == []

    def go(self, *, steps: float = math.inf, answers: float = math.inf) -> None:
        """Let the device go on for so many steps, or until so many more answers have ended."""
        self.runner.go(steps=steps, answers=answers)

    def wait(self, condition: Callable[[], bool]) -> None:
        wait_for(condition, HANG_SECONDS)

    def wait_until_held(self) -> None:
        """Wait until the device has gone as far as it was let."""
        self.wait(lambda: self.runner.is_held)

    def wait_until_it_is_to_be_dropped(self) -> None:
        """Wait until the loop knows of a batch that is not its own to answer any more."""
        self.wait(lambda: bool(self.running._to_drop))

    def is_planned(self, batch_id: str) -> bool:
        """True once the loop has read the batch; the engine has it before its next step."""
        return self.batches.plan(batch_id) is not None

    def engine_has_work(self) -> bool:
        return self.engine.has_work

    def num_completed(self, batch_id: str) -> int:
        return self.batches.get(batch_id).num_completed

    def submit(self, prompt: str, *, is_streaming: bool = False, **fields: Any) -> str:
        """A live request that has been sent; its id."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 50, "stream": is_streaming}
        new = NewLiveRequest(
            DEFAULT_PROJECT_ID,
            "/v1/completions",
            MODEL,
            json.dumps(body | fields),
            is_streaming,
            "test",
            time.time() + LONG_SECONDS,
        )
        return self.live.submit(new, time.time())

    def reply(self, request_id: str) -> tuple[int, dict[str, Any]]:
        """Status and body of a live request, once they are there."""
        found: list[tuple[int, str]] = []

        def has_answer() -> bool:
            state = self.live.poll(request_id)
            assert state is not None
            if state.status_code is not None and state.body is not None:
                found.append((state.status_code, state.body))
            return bool(found)

        self.wait(has_answer)
        status, body = found[0]
        return status, json.loads(body)

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
