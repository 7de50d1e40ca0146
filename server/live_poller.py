"""Looks for what becomes of live requests: one query at a time for all that wait in this process.

A request that has news is looked at again after 10 ms, then less and less often, up to every 100 ms
while nothing comes; so a stream flows, and those that wait in the queue cost little. A client that
reads slowly is not looked for at all until it has taken what was there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sqlalchemy.exc import SQLAlchemyError

from trunkline.server.errors import ApiError
from trunkline.store.live import BEFORE_ALL_EVENTS, LiveRequests, LiveState

logger = logging.getLogger(__name__)

SHORTEST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 0.1
PAUSE_GROWTH = 1.3
# When the database cannot be asked.
FAILED_PAUSE_SECONDS = 1.0
# Requests that are due so soon are looked for together.
TOGETHER_SECONDS = 0.004
# How often it is looked which engines are alive.
ENGINES_SECONDS = 1.0
# A server that stops waits so long for answers; connections are cut soon after that.
STOPPING_SECONDS = 8.0

RETRY_AFTER_SECONDS = 5


def unavailable(message: str, code: str) -> ApiError:
    """Nobody can answer at the moment; the official clients ask again later."""
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)}
    return ApiError(503, message, code=code, kind="server_error", headers=headers)


class LiveWait:
    """One request that a client waits for; from `LivePoller.wait`."""

    def __init__(
        self,
        request_id: str,
        model: str,
        timeout_seconds: float,
        wake: Callable[[], None],
        end: Callable[[LiveWait], None],
    ) -> None:
        self.request_id = request_id
        self.model = model
        self.timeout_seconds = timeout_seconds
        # By the event loop's clock.
        self.expires_at = asyncio.get_running_loop().time() + timeout_seconds
        self.due = math.inf
        self.after_number = BEFORE_ALL_EVENTS
        self._pause = SHORTEST_PAUSE_SECONDS
        self._wake = wake
        self._end = end
        self._asking: asyncio.Future[LiveState | ApiError] | None = None

    @property
    def is_asking(self) -> bool:
        return self._asking is not None and not self._asking.done()

    async def next(self, timeout_seconds: float | None = None) -> LiveState | None:
        """The next events, or the end, or both; None when nothing comes in time.

        May be cancelled and called again; nothing is lost then.

        Raises:
            ApiError: there will be no answer.
        """
        loop = asyncio.get_running_loop()
        self._asking = loop.create_future()
        self.due = min(self.due, loop.time() + self._pause)
        self._wake()
        try:
            await asyncio.wait([self._asking], timeout=timeout_seconds)
            result = self._asking.result() if self._asking.done() else None
        finally:
            self._asking = None
        if isinstance(result, ApiError):
            raise result
        if result is not None and result.events:
            self.after_number = result.events[-1].number
        return result

    def close(self) -> None:
        """Nobody waits any more: the request is deleted, answered or not."""
        self._end(self)

    def tell(self, result: LiveState | ApiError) -> None:
        """Give `next` what was found, if that is news."""
        is_news = isinstance(result, ApiError) or result.events or result.status_code is not None
        if is_news:
            self._pause = SHORTEST_PAUSE_SECONDS
        else:
            self._pause = min(self._pause * PAUSE_GROWTH, LONGEST_PAUSE_SECONDS)
        self.due = asyncio.get_running_loop().time() + self._pause
        if is_news and self._asking is not None and not self._asking.done():
            self._asking.set_result(result)


class LivePoller:
    """All live requests of a server process. To be used on its event loop."""

    def __init__(
        self,
        requests: LiveRequests,
        engines_alive: Callable[[float], Mapping[str, str]],
        stopping: threading.Event,
    ) -> None:
        """Poll `requests`.

        Args:
            engines_alive: by the time, unix seconds: engine -> model of those that live.
            stopping: is set when the server is about to stop.
        """
        self._requests = requests
        self._engines_alive = engines_alive
        self._stopping = stopping
        # By the event loop's clock: nobody is waited for any longer.
        self._stops_at = math.inf
        # Of the thread that looks; there is one at a time.
        self._alive: Mapping[str, str] = {}
        self._next_look_at_engines = 0.0  # monotonic
        self._waits: dict[str, LiveWait] = {}
        self._ended: set[str] = set()
        self._woken = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None
        self._deleting: asyncio.Task[None] | None = None

    def wait(self, request_id: str, model: str, timeout_seconds: float) -> LiveWait:
        """Wait for a request that was submitted; whoever calls this calls `close` in the end."""
        wait = LiveWait(request_id, model, timeout_seconds, self._wake, self._end)
        self._waits[request_id] = wait
        if self._polling is None or self._polling.done():
            self._woken = asyncio.Event()
            self._polling = asyncio.get_running_loop().create_task(self._poll())
        return wait

    async def stop(self) -> None:
        """Delete whatever is left."""
        for wait in list(self._waits.values()):
            wait.close()
        for task in (self._polling, self._deleting):
            if task is not None:
                with suppress(asyncio.CancelledError):
                    await task

    def _wake(self) -> None:
        self._woken.set()

    def _end(self, wait: LiveWait) -> None:
        if self._waits.pop(wait.request_id, None) is None:
            return
        self._wake()
        self._ended.add(wait.request_id)
        if self._deleting is None or self._deleting.done():
            self._deleting = asyncio.get_running_loop().create_task(self._delete())

    async def _delete(self) -> None:
        """Delete what has ended, and together what ends meanwhile."""
        limiter = CapacityLimiter(1)
        while self._ended:
            request_ids, self._ended = self._ended, set()
            try:
                await run_sync(self._requests.withdraw_all, request_ids, limiter=limiter)
            except SQLAlchemyError:
                # The sweep will find them.
                logger.warning("%d requests could not be deleted", len(request_ids), exc_info=True)

    async def _poll(self) -> None:
        # A thread of its own: those of the other routes may all be busy.
        limiter = CapacityLimiter(1)
        loop = asyncio.get_running_loop()
        while self._waits:
            self._woken.clear()
            self._give_up(loop.time())
            soon = loop.time() + TOGETHER_SECONDS
            due = [wait for wait in self._waits.values() if wait.is_asking and wait.due <= soon]
            if due:
                questions = {wait.request_id: (wait.model, wait.after_number) for wait in due}
                try:
                    found = await run_sync(self._look, questions, limiter=limiter)
                except Exception:
                    # Clients would wait for ever if nobody looked any more.
                    logger.exception("live requests cannot be looked for; it will be tried again")
                    await asyncio.sleep(FAILED_PAUSE_SECONDS)
                    continue
                for wait in due:
                    wait.tell(found[wait.request_id])
            dues = [wait.due for wait in self._waits.values() if wait.is_asking]
            with suppress(TimeoutError):
                timeout = max(min(dues) - loop.time(), 0.0) if dues else None
                await asyncio.wait_for(self._woken.wait(), timeout)

    def _give_up(self, now: float) -> None:
        """Tell those who have waited long enough, and all when the server stops."""
        if self._stopping.is_set():
            self._stops_at = min(self._stops_at, now + STOPPING_SECONDS)
        for wait in self._waits.values():
            if now >= wait.expires_at:
                wait.tell(_timed_out(wait.timeout_seconds))
            elif now >= self._stops_at:
                wait.tell(unavailable("The server is stopping.", "server_stopping"))

    def _look(self, questions: Mapping[str, tuple[str, int]]) -> dict[str, LiveState | ApiError]:
        """How each request stands.

        Args:
            questions: request id -> model, and number of the last event that is known.
        """
        numbers = {key: number for key, (_, number) in questions.items()}
        states = self._requests.poll_many(numbers)
        if time.monotonic() >= self._next_look_at_engines:
            self._look_at_engines()
        found: dict[str, LiveState | ApiError] = {}
        suspects = [
            key for key, state in states.items() if not self._has_hope(state, questions[key][0])
        ]
        if suspects:
            # An engine may have come since the last look; one that has gone may have answered.
            self._look_at_engines()
            latest = self._requests.poll_many({key: numbers[key] for key in suspects})
            for key in suspects:
                model = questions[key][0]
                before, state = states.pop(key), latest.get(key)
                if state is None:
                    continue
                is_lost = state.engine == before.engine and not self._has_hope(state, model)
                if is_lost and not state.events:
                    found[key] = unavailable(
                        f"The engine that serves the model '{model}' has stopped.", "engine_stopped"
                    )
                else:
                    states[key] = state
        for key in questions.keys() - found.keys():
            # Only what an engine had begun, which then started anew, is gone without an answer.
            found[key] = states.get(key) or unavailable(
                "The engine stopped in the middle of the answer.", "engine_stopped"
            )
        return found

    def _look_at_engines(self) -> None:
        self._alive = self._engines_alive(time.time())
        self._next_look_at_engines = time.monotonic() + ENGINES_SECONDS

    def _has_hope(self, state: LiveState, model: str) -> bool:
        """Whether the request has ended, or an engine lives that has it or could take it."""
        if state.status_code is not None:
            return True
        if state.engine is not None:
            return state.engine in self._alive
        return model in self._alive.values()


def _timed_out(seconds: float) -> ApiError:
    return ApiError(
        504,
        f"This request was not answered within {seconds:g} seconds. Put requests that may take "
        "long into a batch.",
        code="timeout",
        kind="server_error",
        # To ask again would put it at the end of the same queue.
        headers={"x-should-retry": "false"},
    )
