"""What is seen of a batch at an engine: its span, its records, the figures of the heartbeat."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import insert, select

from tests.engine.letters import EOS, LetterTokenizer, letter_admission
from tests.support import HANG_SECONDS, wait_for
from trunkline.engine.core import Engine
from trunkline.engine.loop import Loop, LoopConfig
from trunkline.engine.plan_summary import PlanSummariser
from trunkline.engine.runner import DoneStep
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.simulation.hardware import HARDWARE, MODEL_SHAPES
from trunkline.engine.step_plan import StepPlan, StepResult
from trunkline.store.blobs import DiskBlobs
from trunkline.store.database import Database
from trunkline.store.live import LiveWork
from trunkline.store.projects import DEFAULT_PROJECT_ID
from trunkline.store.records import EngineRecord
from trunkline.store.schema import batch_requests, batches, engines, files
from trunkline.store.work import Work

MODEL = "silent"
BATCH_ID = "batch_1"


class SilentRunner:
    """Every answer ends with its first token. All steps but the first wait until they may go on."""

    lookahead = 1

    def __init__(self, seconds_per_step: float, may_go_on: threading.Event) -> None:
        self._seconds = seconds_per_step
        self._may_go_on = may_go_on
        self._num_steps = 0

    def submit(self, plan: StepPlan, sequences: Mapping[int, Any], masks: None = None) -> DoneStep:
        time.sleep(self._seconds)
        self._num_steps += 1
        assert self._num_steps == 1 or self._may_go_on.wait(HANG_SECONDS)
        slots = plan.entry_sequence[plan.entry_samples]
        tokens = np.full(len(slots), EOS, np.int32)
        return DoneStep(StepResult(plan.step, slots, tokens, (None,) * len(slots)))


class Bench:
    """A store with a batch in progress, and an engine's loop on it."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self._blobs = DiskBlobs(folder)

    def add_batch(self, bodies: Sequence[dict[str, Any]]) -> None:
        now = int(time.time())
        requests, lines = [], b""
        for number, body in enumerate(bodies, start=1):
            line = json.dumps({"custom_id": str(number), "body": {"model": MODEL, **body}}).encode()
            place = {"offset": len(lines), "num_bytes": len(line)}
            requests.append(
                {"batch_id": BATCH_ID, "line": number, "custom_id": str(number), **place}
            )
            lines += line + b"\n"
        with self._blobs.writer() as writer:
            writer.write(lines)
            blob = writer.commit()
        file = {"id": "file-1", "project_id": DEFAULT_PROJECT_ID, "filename": "in.jsonl"}
        stored = {"num_bytes": blob.num_bytes, "sha256": blob.sha256, "blob_key": blob.key}
        batch = {
            "id": BATCH_ID,
            "project_id": DEFAULT_PROJECT_ID,
            "endpoint": "/v1/completions",
            "input_file_id": "file-1",
            "completion_window": "24h",
            "status": "in_progress",
            "model": MODEL,
            "created_at": now,
            "expires_at": now + 86_400,
            "num_total": len(requests),
        }
        with self.database.write() as connection:
            connection.execute(
                insert(files).values(**file, **stored, purpose="batch", created_at=now)
            )
            connection.execute(insert(batches).values(**batch))
            connection.execute(insert(batch_requests), requests)

    def run_until(
        self,
        condition: Callable[[], bool],
        seconds_per_step: float = 0.0,
        *,
        is_held: bool = False,
    ) -> None:
        """Let an engine work until then; one that is held does one step, and another at the end."""
        may_go_on = threading.Event()
        if not is_held:
            may_go_on.set()
        config = SchedulerConfig(page_size=8, num_pages=100, max_batch_tokens=64)
        tokenizer: Any = LetterTokenizer()
        runner: Any = SilentRunner(seconds_per_step, may_go_on)
        loop = Loop(
            Work(self.database, self._blobs),
            LiveWork(self.database),
            Engine(config, runner, tokenizer),
            letter_admission(tokenizer, config.capacity_tokens),
            PlanSummariser(config, HARDWARE["cpu"], MODEL_SHAPES["smollm2-135m"]),
            EngineRecord("engine", MODEL, "cpu", "float32", 0, time.time(), 200, {}),
            LoopConfig(lease_seconds=0.5, poll_seconds=0.02, commit_seconds=0.02),
        )
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            wait_for(condition, HANG_SECONDS)
        finally:
            loop.stop()
            may_go_on.set()
            thread.join()

    def status(self) -> str:
        with self.database.read() as connection:
            return str(connection.execute(select(batches.c.status)).scalar())

    def figures(self) -> dict[str, Any]:
        with self.database.read() as connection:
            text = connection.execute(select(engines.c.figures)).scalar()
        figures: dict[str, Any] = json.loads(text or "{}")
        return figures


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    return Bench(database, tmp_path / "blobs")


def only(spans: InMemorySpanExporter) -> ReadableSpan:
    (span,) = spans.get_finished_spans()
    return span


def test_a_batch_is_a_span_from_claim_to_finish(bench: Bench, spans: InMemorySpanExporter) -> None:
    bench.add_batch([{"prompt": "abc"}, {"prompt": "abd"}, {"prompt": "abc", "n": "many"}])
    bench.run_until(lambda: bench.status() == "finalizing")
    span = only(spans)
    assert span.name == "batch run"
    assert span.parent is None
    assert span.attributes == {
        "trunkline.batch_id": BATCH_ID,
        "trunkline.model": MODEL,
        "trunkline.lines": 3,
        "trunkline.result": "finished",
        "trunkline.answered": 2,
        "trunkline.failed": 1,
    }
    (event,) = span.events
    assert event.name == "running"
    assert event.attributes == {"trunkline.requests": 2, "trunkline.refused": 1}


def test_a_batch_that_is_given_back_ends_its_span(
    bench: Bench, spans: InMemorySpanExporter
) -> None:
    bench.add_batch([{"prompt": f"{number}" * 60} for number in range(9)])
    bench.run_until(lambda: bench.figures().get("num_steps", 0) > 0, is_held=True)
    assert bench.status() == "in_progress"
    attributes = only(spans).attributes
    assert attributes is not None
    assert attributes["trunkline.result"] == "released"


def test_records_of_a_batch_carry_its_id(
    bench: Bench, spans: InMemorySpanExporter, log_to: Callable[..., Any]
) -> None:
    log = log_to()
    bench.add_batch([{"prompt": "abc"}])
    bench.run_until(lambda: bench.status() == "finalizing")
    about = [(record["batch_id"], record["project_id"]) for record in log.records]
    assert len(about) >= 3
    assert set(about) == {(BATCH_ID, DEFAULT_PROJECT_ID)}


def test_the_heartbeat_tells_live_figures(bench: Bench) -> None:
    bench.add_batch([{"prompt": "abcdefgh"}, {"prompt": "abcdefgh"}])
    bench.run_until(
        lambda: bench.status() == "finalizing" and bench.figures().get("num_output_tokens", 0) > 0,
        seconds_per_step=0.05,
    )
    figures = bench.figures()
    assert figures["num_output_tokens"] == 2
    assert figures["num_computed_prompt_tokens"] + figures["num_cached_prompt_tokens"] == 16
    assert figures["step_seconds"] > 0.02  # some only wait for the last result
    assert figures["kv_pages"] == 100
