"""A store with loops on it, and a device that samples by rule."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trunkline.engine.admission import Admission, Limits
from trunkline.engine.core import Engine
from trunkline.engine.grammar import Grammars
from trunkline.engine.loop import Loop, LoopConfig
from trunkline.engine.plan_summary import PlanSummariser
from trunkline.engine.pooling import PoolingConfig
from trunkline.engine.prompt_reading import Pooling
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
from trunkline.store.records import EngineRecord, NewBatch, NewFile, NewRequest
from trunkline.store.states import BatchStatus
from trunkline.store.work import Work

MODEL = "counting"
EOS = 0


class LetterTokenizer:
    """A token for each letter."""

    eos_token_ids = frozenset([EOS])
    vocab_size = 128
    chat_template = "{{ messages[0].content }}"
    vocabulary: Mapping[str, int] = {}

    def encode_many(
        self, texts: Sequence[str], *, add_special_tokens: bool
    ) -> list[NDArray[np.int32]]:
        return [np.array([ord(c) for c in text], np.int32) for text in texts]

    def render_chat(self, messages: Any, template_kwargs: Any = None, **_: Any) -> str:
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

    def submit(
        self, plan: StepPlan, sequences: Mapping[int, TokenSequence], masks: None = None
    ) -> DoneStep:
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
        self._database = database
        self.live = LiveRequests(database)
        self.blobs = DiskBlobs(folder)
        self.batches = Batches(database, DEFAULT_PROJECT_ID)
        self.files = Files(database, DEFAULT_PROJECT_ID)
        self.outcomes = Outcomes(database)
        self.closing, self.work = Closing(database), Work(database, self.blobs)
        self.engine: Engine | None = None

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
    def loop(self, seconds_per_step: float = 0.0, name: str = "engine") -> Iterator[Loop]:
        config = SchedulerConfig(page_size=8, num_pages=500, max_batch_tokens=64)
        tokenizer: Any = LetterTokenizer()
        runner: Any = RuleRunner(seconds_per_step)
        self.engine = Engine(config, runner, tokenizer)
        admission = Admission(
            tokenizer,
            Limits(200, config.capacity_tokens),
            Grammars(tokenizer, tokenizer.vocab_size),
            PoolingConfig(Pooling.LAST, normalizes=True),
            num_dimensions=4,
        )
        loop = Loop(
            self.work,
            LiveWork(self._database),
            self.engine,
            admission,
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
            time.time() + 60,
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
