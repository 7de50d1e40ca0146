"""The server's background work: batches are validated, expired and finalized; old things deleted.

One thread decides, one worker process computes. All state is in the store: whatever is interrupted
is begun again by this server or another one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool

from trunkline.server.job_observation import LOST, observed_job
from trunkline.server.jobs import Job
from trunkline.server.metrics import Metrics
from trunkline.server.settings import ServerSettings
from trunkline.server.sweep import Sweep
from trunkline.server.worker import Worker
from trunkline.store.closing import Closing
from trunkline.store.errors import LeaseLost
from trunkline.store.location import StoreLocation
from trunkline.store.records import Claim
from trunkline.store.states import BatchStatus, is_terminal

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 60.0
# After an unforeseen error.
PAUSE_SECONDS = 5.0


class Lifecycle:
    """Brings batches from one status to the next."""

    def __init__(
        self,
        settings: ServerSettings,
        closing: Closing,
        sweep: Sweep,
        models: Callable[[], tuple[str, ...]],
        batch_ended: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._closing = closing
        self._sweep = sweep
        self._models = models
        self._batch_ended = batch_ended
        self._metrics = metrics
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lifecycle", daemon=True)
        self._worker = Worker()
        self._next_sweep = 0.0

    def start(self) -> None:
        self._closing.release_all_of(self._settings.server_name)
        self._thread.start()

    def wake(self) -> None:
        """There may be work right now."""
        self._wake.set()

    def stop(self) -> None:
        """Stop at once; what a job had begun is begun again by the next server."""
        self._stopping.set()
        self._wake.set()
        self._worker.stop()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._step():
                    continue
                pause = self._settings.server_poll_seconds
            except Exception:
                # The batch, if there is one, stays claimed until its lease runs out: a pause
                # before it is tried again.
                logger.exception("background work failed; it will be tried again")
                pause = PAUSE_SECONDS
            self._wake.wait(pause)
            self._wake.clear()

    def _step(self) -> bool:
        """One piece of work; whether there was any."""
        now = time.time()
        num_expired = self._closing.expire_due(int(now))
        if num_expired:
            logger.info("%d batches have reached the end of their window", num_expired)
        if now >= self._next_sweep:
            self._sweep.run(int(now))
            self._next_sweep = now + SWEEP_SECONDS
        claim = self._closing.claim(
            self._settings.server_name, now, self._settings.server_lease_seconds
        )
        if claim is None:
            return False
        self._advance(claim)
        return True

    def _advance(self, claim: Claim) -> None:
        settings = self._settings
        job = Job(
            location=StoreLocation(**settings.model_dump(include=set(StoreLocation.model_fields))),
            claim=claim,
            models=self._models(),
            max_requests=settings.max_batch_requests,
            lease_seconds=settings.server_lease_seconds,
            output_expires_seconds=settings.output_expires_seconds,
        )
        with observed_job(claim, self._metrics) as observed:
            started = time.monotonic()
            try:
                status = self._wait(self._worker.submit(job), claim)
            except BrokenProcessPool:
                if not self._stopping.is_set():
                    self._worker.replace()
                    raise
                self._closing.release(claim)
                return
            observed.result = status or LOST
            if status is not None and is_terminal(status):
                self._batch_ended()
            logger.info(
                "batch %s: %s -> %s in %.1f s",
                claim.batch_id,
                claim.status,
                status or "taken by another server",
                time.monotonic() - started,
            )

    def _wait(self, future: Future[BatchStatus | None], claim: Claim) -> BatchStatus | None:
        """Wait for a job, and keep its lease meanwhile."""
        lease_seconds = self._settings.server_lease_seconds
        while not wait([future], timeout=lease_seconds / 4).done:
            try:
                self._closing.heartbeat(claim, time.time(), lease_seconds)
            except LeaseLost:
                # A job that has just ended has given its lease back.
                if not wait([future], timeout=1).done:
                    logger.warning("batch %s: its lease was lost", claim.batch_id)
        return future.result()
