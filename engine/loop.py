"""Claim batches from the store, answer them, commit the outcomes; until told to stop.

Four threads, so that the device never waits for the database or the tokenizer:

    feeder    claims a batch, reads its unfinished lines, admits them    -> `_admitted`
    main      adds what was admitted, steps the engine                   -> `_outcomes`
    keeper    commits outcomes in groups, heartbeats, finishes batches
    desk      requests that clients wait for: see `live`

Only the main thread touches the engine. What is lost when the process dies is what was not
committed; the store hands exactly that to whoever claims the batch next.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from opentelemetry.trace import use_span

from trunkline.engine.answering import AnswerEngine, LineAdmission, Summariser
from trunkline.engine.figures import LiveFigures
from trunkline.engine.held_batch import HeldBatch
from trunkline.engine.live import LiveDesk
from trunkline.engine.outcome import answered, refused
from trunkline.engine.request import Line, Refusal, Request
from trunkline.store.blobs import BlobsUnavailable
from trunkline.store.errors import LeaseLost
from trunkline.store.live import LiveWork
from trunkline.store.records import Claim, EngineRecord, Outcome, RequestRow
from trunkline.store.work import Work

logger = logging.getLogger(__name__)

# Answered requests of a batch that are looked at to learn how long answers are.
MAX_LEARNED_REQUESTS = 512


@dataclass(frozen=True)
class LoopConfig:
    """How the loop talks to the store.

    Attributes:
        lease_seconds: a claim lapses when it is not renewed for so long.
        poll_seconds: pause between two looks for work.
        commit_seconds: an outcome waits at most so long to be committed.
        max_held_requests: no further batch is claimed while so many requests are unfinished.
    """

    lease_seconds: float = 30.0
    poll_seconds: float = 0.5
    commit_seconds: float = 0.5
    max_held_requests: int = 100_000


@dataclass(frozen=True)
class Admitted:
    """All unfinished lines of a batch, ready to run."""

    batch: HeldBatch
    requests: list[Request]
    refusals: list[Refusal]


class Loop:
    """The engine process's work."""

    def __init__(
        self,
        work: Work,
        live_work: LiveWork,
        engine: AnswerEngine,
        admission: LineAdmission,
        summariser: Summariser,
        record: EngineRecord,
        config: LoopConfig,
    ) -> None:
        self._work = work
        self._engine = engine
        self._admission = admission
        self._summariser = summariser
        self._record = record
        self._config = config
        self._figures = LiveFigures(engine.counts, time.monotonic())
        self._stopping = threading.Event()
        self._stepped_out = threading.Event()  # the main thread has stopped stepping
        self._wake = threading.Event()  # there is something for the main thread to do
        self._failure: BaseException | None = None
        self._lock = threading.Lock()  # guards the next two
        self._held: dict[str, HeldBatch] = {}  # by batch id
        self._to_drop: list[HeldBatch] = []
        self._admitted: queue.Queue[Admitted] = queue.Queue()
        # None says that no more outcomes of the batch will come.
        self._outcomes: queue.Queue[tuple[HeldBatch, Outcome | None]] = queue.Queue()
        self._desk = LiveDesk(
            live_work, engine, admission, record.name, record.model, self._wake.set
        )

    def stop(self) -> None:
        """Finish the current step, commit what is done, give the claims back. From any thread."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Work until `stop`.

        Raises:
            Exception: what a thread failed with. Claims are then left to lapse.
        """
        self._work.register(self._record)
        threads = [
            threading.Thread(target=self._guarded, args=(body,), name=name, daemon=True)
            for name, body in (
                ("feeder", self._feed),
                ("keeper", self._keep),
                ("desk", self._serve_desk),
            )
        ]
        for thread in threads:
            thread.start()
        try:
            self._step_until_stopped()
        finally:
            self.stop()
            self._stepped_out.set()
            for thread in threads:
                thread.join()
        if self._failure is not None:
            raise self._failure
        for batch in list(self._held.values()):
            self._work.release(batch.claim)
            self._forget(batch, "released")
        self._work.unregister(self._record.name, time.time())

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            self._failure = error
            self.stop()

    def _holds(self, batch: HeldBatch) -> bool:
        with self._lock:
            return self._held.get(batch.claim.batch_id) is batch

    # The main thread.

    def _step_until_stopped(self) -> None:
        while not self._stopping.is_set():
            self._add_admitted()
            self._drop_unwanted()
            self._desk.add_new()
            if not self._engine.has_work:
                self._wake.wait(timeout=self._config.poll_seconds)
                self._wake.clear()
                continue
            started = time.monotonic()
            finished = self._engine.step()
            self._figures.stepped(time.monotonic() - started)
            self._desk.read_streams()
            for request in finished:
                if request.line.is_live:
                    self._figures.answered(self._desk.finish(request))
                    continue
                outcome = answered(request, self._engine.tokenizer, int(time.time()))
                self._figures.answered(outcome)
                with self._lock:
                    batch = self._held.get(request.line.batch_id)
                if batch is not None:
                    self._outcomes.put((batch, outcome))

    def _add_admitted(self) -> None:
        while not self._admitted.empty():
            admitted = self._admitted.get()
            if not self._holds(admitted.batch):
                continue
            num_requests, num_refused = len(admitted.requests), len(admitted.refusals)
            admitted.batch.runs(num_requests, num_refused)
            for refusal in admitted.refusals:
                self._outcomes.put((admitted.batch, refused(refusal)))
            self._engine.add(admitted.requests)
            with admitted.batch.log_fields():
                logger.info(
                    "batch %s: running %d requests, refused %d",
                    admitted.batch.claim.batch_id,
                    num_requests,
                    num_refused,
                )

    def _drop_unwanted(self) -> None:
        with self._lock:
            unwanted, self._to_drop = self._to_drop, []
        if not unwanted:
            return
        ids = {batch.claim.batch_id for batch in unwanted}
        self._engine.drop(lambda request: request.line.batch_id in ids)
        for batch in unwanted:
            self._outcomes.put((batch, None))

    def _serve_desk(self) -> None:
        self._desk.serve(self._stopping, self._stepped_out)

    # The feeder thread.

    def _feed(self) -> None:
        while not self._stopping.is_set():
            claim = self._next_claim()
            if claim is None:
                self._stopping.wait(self._config.poll_seconds)
                continue
            batch = HeldBatch(claim)
            with batch.log_fields(), use_span(batch.span):
                self._take(batch)

    def _take(self, batch: HeldBatch) -> None:
        """Hold a batch that was just claimed, and get it ready to run."""
        claim = batch.claim
        logger.info("batch %s: claimed, %d lines", claim.batch_id, claim.num_total)
        with self._lock:
            for other in self._held.values():
                other.floor_seconds = None
            self._held[claim.batch_id] = batch
        try:
            self._read(batch)
        except FileNotFoundError as error:
            # Nobody can run these lines any more; that is their outcome.
            logger.error("batch %s: %s", claim.batch_id, error)
            lines = self._work.unfinished_lines(claim)
            batch.num_open = len(lines)
            for line in lines:
                gone = Outcome(line, error_code="input_file_gone", error_message=str(error))
                self._outcomes.put((batch, gone))
        except BlobsUnavailable as error:
            # The lines are there, only not now: for this engine later, or for another one.
            logger.warning("batch %s: given back, %s", claim.batch_id, error)
            self._work.release(claim)
            self._forget(batch, "released")
            self._stopping.wait(self._config.poll_seconds)

    def _read(self, batch: HeldBatch) -> None:
        """Admit the lines of `batch` that have no outcome."""
        self._learn_lengths(batch.claim)
        requests: list[Request] = []
        refusals: list[Refusal] = []
        for admitted in self._admission.admit(self._lines(batch.claim)):
            if isinstance(admitted, Request):
                requests.append(admitted)
            else:
                refusals.append(admitted)
            if self._stopping.is_set():
                return
        batch.num_open = len(requests) + len(refusals)
        self._admitted.put(Admitted(batch, requests, refusals))
        self._wake.set()
        self._save_plan(batch, requests)

    def _save_plan(self, batch: HeldBatch, requests: list[Request]) -> None:
        sequences = [sequence for request in requests for sequence in request.sequences]
        if not sequences:
            return
        plan = self._summariser.summarise(sequences, self._engine.output_lengths.expected)
        with self._lock:
            is_alone = len(self._held) == 1
        batch.began_at = time.monotonic()
        batch.floor_seconds = plan["floor_seconds"] if is_alone else None
        with suppress(LeaseLost):  # it is through already, or lost: the keeper will see
            self._work.save_plan(batch.claim, plan)

    def _learn_lengths(self, claim: Claim) -> None:
        """What an earlier process has answered of the batch says how long answers are."""
        finished = self._work.finished_lengths(claim, MAX_LEARNED_REQUESTS)
        lengths = {row.line: num_tokens for row, num_tokens in finished}
        lines = [_line(claim, row) for row, _ in finished]
        for admitted in self._admission.admit(lines):
            if isinstance(admitted, Request):
                num_tokens = lengths[admitted.line.line] // len(admitted.sequences)
                for sequence in admitted.sequences:
                    self._engine.output_lengths.observe(sequence, num_tokens)

    def _next_claim(self) -> Claim | None:
        with self._lock:
            num_held = sum(batch.num_open or 0 for batch in self._held.values())
        if num_held >= self._config.max_held_requests:
            return None
        return self._work.claim(
            self._record.name, [self._record.model], time.time(), self._config.lease_seconds
        )

    def _lines(self, claim: Claim) -> Iterator[Line]:
        return (_line(claim, row) for row in self._work.unfinished(claim))

    # The keeper thread.

    def _keep(self) -> None:
        """Commit and heartbeat; for the last time when the main thread has stopped stepping."""
        next_heartbeat = time.monotonic()
        while True:
            is_last = self._stepped_out.wait(self._config.commit_seconds)
            self._commit()
            if time.monotonic() >= next_heartbeat:
                self._heartbeat()
                next_heartbeat = time.monotonic() + self._config.lease_seconds / 10
            if is_last:
                return

    def _commit(self) -> None:
        groups: dict[HeldBatch, list[Outcome]] = {}
        through: list[HeldBatch] = []
        while not self._outcomes.empty():
            batch, outcome = self._outcomes.get()
            if outcome is None:
                through.append(batch)
            else:
                groups.setdefault(batch, []).append(outcome)
        for batch, outcomes in groups.items():
            try:
                self._work.commit(batch.claim, outcomes, int(time.time()))
            except LeaseLost:
                self._lose(batch)
            else:
                batch.settle(outcomes)
        with self._lock:
            held = list(self._held.values())
        for batch in held:
            if batch.num_open == 0 and self._work.finish(batch.claim, int(time.time())):
                with batch.log_fields():
                    logger.info("batch %s: all lines have an outcome", batch.claim.batch_id)
                if batch.floor_seconds is not None:
                    elapsed = time.monotonic() - batch.began_at
                    self._summariser.learn(batch.floor_seconds, elapsed)
                self._forget(batch, "finished")
        for batch in through:
            self._work.release(batch.claim)
            self._forget(batch, "dropped")

    def _heartbeat(self) -> None:
        with self._lock:
            held = list(self._held.values())
        standing = self._work.heartbeat(
            self._record.name,
            self._figures.read(time.monotonic()),
            [batch.claim for batch in held],
            time.time(),
            self._config.lease_seconds,
        )
        for batch in held:
            held_as = standing.get(batch.claim.batch_id)
            if held_as is None:
                self._lose(batch)
            elif batch.num_open != 0 and not held_as.is_to_be_run:
                standing_as = "paused" if held_as.is_paused else held_as.status
                with batch.log_fields():
                    logger.info("batch %s: is %s, dropped", batch.claim.batch_id, standing_as)
                self._drop(batch)

    def _lose(self, batch: HeldBatch) -> None:
        with batch.log_fields():
            logger.warning("batch %s: lost its lease, dropped", batch.claim.batch_id)
        self._forget(batch, "lost")
        self._drop(batch)

    def _drop(self, batch: HeldBatch) -> None:
        with self._lock:
            self._to_drop.append(batch)
        self._wake.set()

    def _forget(self, batch: HeldBatch, result: str) -> None:
        with self._lock:
            if self._held.get(batch.claim.batch_id) is not batch:
                return
            del self._held[batch.claim.batch_id]
        batch.end(result)


def _line(claim: Claim, row: RequestRow) -> Line:
    return Line(
        *(row.batch_id, row.line, row.custom_id, claim.endpoint, row.body),
        deadline=claim.expires_at,
        priority=claim.priority,
    )
