"""Requests that clients wait for, beside the batches: claimed at once, answered first.

They come through the store, as everything does. A thread of its own looks for them often, and
writes what is said to them; the main thread, which alone touches the engine, puts them before all
that waits and reads their answers after each step.

    desk's thread   claims and admits                        -> `_admitted`
    main thread     adds, reads what was generated           -> `_said`
    desk's thread   commits events and answers; asks who still waits -> `_unwanted`
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass

from trunkline.engine.answering import AnswerEngine, LineAdmission
from trunkline.engine.answers.streams import AnswerStream, StreamEvent, stream_of
from trunkline.engine.faults import fault_of
from trunkline.engine.outcome import answered, refused
from trunkline.engine.request import Line, Refusal, Request
from trunkline.store.live import LiveAnswer, LiveEvent, LiveRequest, LiveWork
from trunkline.store.records import Outcome

logger = logging.getLogger(__name__)

# Between two looks for new requests.
POLL_SECONDS = 0.025
# Between two questions whether clients still wait.
WANTED_SECONDS = 1.0
# Requests that are claimed at once, and that are held at most.
MAX_CLAIMED = 64
MAX_HELD = 256
# Above the priority of any batch.
PRIORITY = 1_000_000


@dataclass(frozen=True)
class _Streamed:
    line: Line
    stream: AnswerStream


class LiveDesk:
    """The live requests of one engine."""

    def __init__(
        self,
        work: LiveWork,
        engine: AnswerEngine,
        admission: LineAdmission,
        engine_name: str,
        model: str,
        wake: Callable[[], None],
    ) -> None:
        """Of an engine.

        Args:
            work: the store's side.
            engine: touched by the main thread only.
            admission: of the same model.
            engine_name: that claims.
            model: that is served.
            wake: called when there is something for the main thread to do.
        """
        self._work = work
        self._engine = engine
        self._admission = admission
        self._engine_name = engine_name
        self._model = model
        self._wake = wake
        self._lock = threading.Lock()  # guards the next two
        self._held: set[str] = set()  # ids of requests without an answer
        self._unwanted: set[str] = set()
        self._admitted: queue.Queue[Request] = queue.Queue()
        self._said: queue.Queue[LiveEvent | LiveAnswer] = queue.Queue()
        self._has_said = threading.Event()
        # Of the main thread: by request id.
        self._streams: dict[str, _Streamed] = {}
        self._num_events: dict[str, int] = {}

    # The main thread.

    def add_new(self) -> None:
        """Give the engine what was admitted, and take from it what nobody waits for."""
        with self._lock:
            unwanted, self._unwanted = self._unwanted, set()
        if unwanted:
            self._withdraw(unwanted)
        new = []
        while not self._admitted.empty():
            request = self._admitted.get()
            if request.line.batch_id in unwanted:
                continue
            if not _is_streaming(request) or self._begins_stream(request):
                new.append(request)
        if new:
            self._engine.add_ahead(new)

    def read_streams(self) -> None:
        """Say what a step has added to the answers that are streamed."""
        for request_id, streamed in list(self._streams.items()):
            try:
                self._say_events(request_id, streamed.stream.progress())
            except Exception as error:
                self._say_answer(request_id, _failed(streamed.line, error))
                self._withdraw({request_id})

    def finish(self, request: Request) -> Outcome:
        """Answer a request that has finished."""
        request_id = request.line.batch_id
        outcome = answered(request, self._engine.tokenizer, int(time.time()))
        streamed = self._streams.get(request_id)
        if streamed is not None:
            try:
                self._say_events(request_id, streamed.stream.finish())
            except Exception as error:
                outcome = _failed(request.line, error)
        self._say_answer(request_id, outcome)
        self._forget(request_id)
        return outcome

    def _begins_stream(self, request: Request) -> bool:
        """Whether the request, which wants a stream, has one now; else it is answered."""
        try:
            stream = stream_of(request, self._engine.tokenizer, int(time.time()))
        except Exception as error:
            self._say_answer(request.line.batch_id, _failed(request.line, error))
            return False
        self._streams[request.line.batch_id] = _Streamed(request.line, stream)
        return True

    def _say_events(self, request_id: str, events: Iterable[StreamEvent]) -> None:
        for event in events:
            number = self._num_events.get(request_id, 0)
            self._num_events[request_id] = number + 1
            self._said.put(LiveEvent(request_id, number, event.event, event.data))
            self._has_said.set()

    def _say_answer(self, request_id: str, outcome: Outcome) -> None:
        assert outcome.status_code is not None
        assert outcome.body is not None
        self._said.put(LiveAnswer(request_id, outcome.status_code, outcome.body))
        self._has_said.set()

    def _withdraw(self, request_ids: Set[str]) -> None:
        self._engine.withdraw(lambda request: request.line.batch_id in request_ids)
        for request_id in request_ids:
            self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        self._streams.pop(request_id, None)
        self._num_events.pop(request_id, None)

    # The desk's thread.

    def serve(self, is_stopping: threading.Event, is_last: threading.Event) -> None:
        """Claim and commit.

        Args:
            is_stopping: nothing more is to be claimed.
            is_last: the main thread has said its last.
        """
        next_question = time.monotonic() + WANTED_SECONDS
        while True:
            is_over = is_last.is_set()
            self._commit()
            if is_over:
                return
            if not is_stopping.is_set():
                self._claim()
            if time.monotonic() >= next_question:
                self._ask_who_waits()
                next_question = time.monotonic() + WANTED_SECONDS
            self._has_said.wait(POLL_SECONDS)
            self._has_said.clear()

    def _claim(self) -> None:
        with self._lock:
            room = MAX_HELD - len(self._held)
        if room <= 0:
            return
        claimed = self._work.claim(
            self._engine_name, [self._model], time.time(), min(room, MAX_CLAIMED)
        )
        if not claimed:
            return
        with self._lock:
            self._held |= {request.id for request in claimed}
        for admitted in self._admission.admit(_line(request) for request in claimed):
            if isinstance(admitted, Refusal):
                self._say_answer(admitted.line.batch_id, refused(admitted))
            else:
                self._admitted.put(admitted)
        self._wake()

    def _commit(self) -> None:
        events: list[LiveEvent] = []
        answers: list[LiveAnswer] = []
        while not self._said.empty():
            said = self._said.get()
            if isinstance(said, LiveEvent):
                events.append(said)
            else:
                answers.append(said)
        self._work.commit(events, answers)
        if answers:
            with self._lock:
                self._held -= {answer.request_id for answer in answers}

    def _ask_who_waits(self) -> None:
        with self._lock:
            held = set(self._held)
        if not held:
            return
        gone = held - self._work.wanted(held)
        if gone:
            with self._lock:
                self._held -= gone
                self._unwanted |= gone
            self._wake()


def _failed(line: Line, error: Exception) -> Outcome:
    return refused(fault_of(line, "writing the answer", error))


def _is_streaming(request: Request) -> bool:
    return bool(getattr(request.body, "stream", False))


def _line(request: LiveRequest) -> Line:
    return Line(
        *(request.id, 1, request.id, request.endpoint, request.body),
        priority=PRIORITY,
        is_live=True,
    )
