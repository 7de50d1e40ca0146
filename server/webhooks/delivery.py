"""Events go out: claimed one by one, tried again until they are delivered or too old.

All state is in the store, so that a restart loses nothing and several servers share the work. An
event may arrive twice, when a server dies between the endpoint's answer and the note of it; the id
of the event tells the receiver.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import anyio
from anyio.to_thread import run_sync

from trunkline.server.job_observation import webhook_span
from trunkline.server.settings import ServerSettings
from trunkline.server.webhooks.addresses import UrlRefused
from trunkline.server.webhooks.backoff import Backoff
from trunkline.server.webhooks.post import Poster, Unreachable
from trunkline.store.webhooks import ClaimedDelivery, Deliveries

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
# At the same time, each to another endpoint: a slow one holds up nobody but itself.
MAX_CONCURRENT = 16
# A look-up of a host cannot be broken off, and may take longer than the attempt that needs it.
MAX_LOOKUPS = 4 * MAX_CONCURRENT
# How long the store may take to note how an attempt has ended, while the claim still holds.
NOTING_SECONDS = 120.0
# After an unforeseen error.
PAUSE_SECONDS = 5.0

SWEEP_SECONDS = 3600.0
KEPT_SECONDS = 30 * 86_400
MAX_ERROR_CHARACTERS = 500


@dataclass(frozen=True)
class _Attempt:
    """A delivery that is on its way, and how to break it off."""

    task: asyncio.Task[None]
    scope: anyio.CancelScope


class WebhookSender:
    """A thread that sends what is due."""

    def __init__(
        self,
        settings: ServerSettings,
        deliveries: Deliveries,
        poster: Poster | None = None,
        backoff: Backoff | None = None,
        claim_seconds: float | None = None,
    ) -> None:
        self._deliveries = deliveries
        self._poster = poster or Poster(settings)
        self._backoff = backoff or Backoff()
        self._claim_seconds = claim_seconds or settings.webhook_timeout_seconds + NOTING_SECONDS
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._awake = asyncio.Event()
        self._attempts: dict[str, _Attempt] = {}  # by the id of their endpoint
        self._next_sweep = 0.0

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There may be something to send right now. From any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._awake.set)

    def stop(self) -> None:
        """Break off what is on its way; it is due again at once, here or at another server."""
        self._stopping.set()
        self.wake()
        self._thread.join()

    def _run(self) -> None:
        loop = asyncio.new_event_loop()
        loop.set_default_executor(ThreadPoolExecutor(MAX_LOOKUPS, thread_name_prefix="webhooks"))
        self._loop = loop
        try:
            loop.run_until_complete(self._send_until_stopped())
        finally:
            # Does not wait for names that are still being looked up, as `asyncio.run` would.
            loop.close()

    async def _send_until_stopped(self) -> None:
        while not self._stopping.is_set():
            self._awake.clear()
            pause = POLL_SECONDS
            try:
                await self._start_due()
            except Exception:
                logger.exception("sending webhooks failed; it will be tried again")
                pause = PAUSE_SECONDS
            with suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), pause)
        attempts = tuple(self._attempts.values())
        for attempt in attempts:
            attempt.scope.cancel()
        await asyncio.gather(*(attempt.task for attempt in attempts))

    async def _start_due(self) -> None:
        """Start an attempt for everything that is due, as far as there is room."""
        now = time.time()
        if now >= self._next_sweep:
            while await run_sync(self._deliveries.sweep, int(now) - KEPT_SECONDS):
                pass
            self._next_sweep = now + SWEEP_SECONDS
        while len(self._attempts) < MAX_CONCURRENT and not self._stopping.is_set():
            claimed = await run_sync(self._claim, frozenset(self._attempts))
            if claimed is None:
                return
            scope = anyio.CancelScope()
            task = asyncio.create_task(self._deliver(claimed, scope))
            self._attempts[claimed.endpoint.id] = _Attempt(task, scope)

    def _claim(self, busy: frozenset[str]) -> ClaimedDelivery | None:
        now = time.time()
        # Claiming writes, and writers wait for each other; mostly nothing is due.
        if not self._deliveries.any_due(now, busy):
            return None
        return self._deliveries.claim(now, self._claim_seconds, busy)

    async def _deliver(self, claimed: ClaimedDelivery, scope: anyio.CancelScope) -> None:
        try:
            error: str | None = "The server was stopped before there was an answer."
            with scope:
                error = await self._attempt(claimed)
            await run_sync(self._note, claimed, error)
        except Exception:
            # The claim runs out, and then the event is due again.
            logger.exception("the outcome of webhook %s is not noted", claimed.delivery.event_id)
        finally:
            del self._attempts[claimed.endpoint.id]
            self._awake.set()

    async def _attempt(self, claimed: ClaimedDelivery) -> str | None:
        """Send the event; what went wrong, or None."""
        delivery, endpoint = claimed.delivery, claimed.endpoint
        now = int(time.time())
        try:
            with webhook_span(delivery.event_type, endpoint.url, delivery.num_attempts - 1) as span:
                status = await self._poster.post(
                    endpoint.url, delivery.event_id, delivery.body, endpoint.secrets(now), now
                )
                span.set_attribute("http.response.status_code", status)
        except (UrlRefused, Unreachable) as reason:
            return str(reason)[:MAX_ERROR_CHARACTERS]
        except Exception as reason:
            logger.exception("webhook %s could not be sent", delivery.event_id)
            return f"{type(reason).__name__}: {reason}"[:MAX_ERROR_CHARACTERS]
        if 200 <= status < 300:
            return None
        hint = " Redirects are not followed." if 300 <= status < 400 else ""
        return f"The endpoint answered with HTTP status {status}.{hint}"

    def _note(self, claimed: ClaimedDelivery, error: str | None) -> None:
        delivery, endpoint = claimed.delivery, claimed.endpoint
        now = time.time()
        if error is None:
            self._deliveries.succeeded(delivery, int(now))
            logger.info("webhook %s delivered to %s", delivery.event_id, endpoint.id)
            return
        at: float | None = now
        if not self._stopping.is_set():
            at = self._backoff.next_attempt_at(delivery.created_at, delivery.num_attempts, now)
        self._deliveries.failed(delivery, error, at)
        logger.warning(
            "webhook %s to %s, attempt %d: %s %s",
            delivery.event_id,
            endpoint.id,
            delivery.num_attempts,
            error,
            "Given up." if at is None else f"Next attempt in {at - now:.0f} s.",
        )
