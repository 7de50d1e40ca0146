"""The heavy work at a batch's beginning and end, run in a process of its own.

Validating 200 MB of JSON takes a core for seconds; in the server's process it would make every
client wait.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from trunkline.server.finalize import write_results
from trunkline.server.intake import Intake, read_input
from trunkline.store.batches import Batches
from trunkline.store.closing import Closing
from trunkline.store.database import Database
from trunkline.store.errors import LeaseLost, NotFound
from trunkline.store.files import Files
from trunkline.store.location import StoreLocation
from trunkline.store.open_blobs import open_blobs
from trunkline.store.outcomes import Outcomes
from trunkline.store.records import Claim, LineError, NewFile, StoredBlob
from trunkline.store.states import BatchStatus


@dataclass(frozen=True)
class Job:
    """A claimed batch and all that is needed to bring it further. Goes to another process."""

    location: StoreLocation
    claim: Claim
    models: tuple[str, ...]
    max_requests: int
    lease_seconds: float
    output_expires_seconds: int


def run_job(job: Job) -> BatchStatus | None:
    """Validate, finalize or close the batch; its new status, or None if somebody else has it."""
    database = Database.open(job.location.url)
    try:
        worker = _Worker(job, database)
        with suppress(LeaseLost):
            # A batch that was cancelled before it was validated is validated all the same: its
            # lines have to be known to have an outcome each.
            if job.claim.num_total == 0:
                worker.validate()
            else:
                worker.close()
            return Batches(database, job.claim.project_id).get(job.claim.batch_id).status
        return None
    finally:
        database.close()


class _Worker:
    def __init__(self, job: Job, database: Database) -> None:
        self._job = job
        self._claim = job.claim
        self._blobs = open_blobs(job.location)
        self._files = Files(database, job.claim.project_id)
        self._batches = Batches(database, job.claim.project_id)
        self._outcomes = Outcomes(database)
        self._closing = Closing(database)

    def validate(self) -> None:
        intake = self._read_input()
        now = int(time.time())
        if intake.errors:
            self._closing.reject(self._claim, intake.errors, now)
        else:
            assert intake.model is not None, "every valid line names a model"
            self._closing.accept(
                self._claim, intake.requests, intake.model, intake.num_estimated_tokens, now
            )

    def _read_input(self) -> Intake:
        claim = self._claim
        try:
            file = self._files.get(claim.input_file_id)
            with self._blobs.open(file.blob_key) as blob:
                return read_input(blob, claim.endpoint, self._job.models, self._job.max_requests)
        except (NotFound, FileNotFoundError):
            gone = LineError(
                "invalid_request",
                f"Cannot find file {claim.input_file_id}, or organization default does not have "
                "access to it.",
                "file_id",
                None,
            )
            return Intake([], None, 0, [gone])

    def close(self) -> None:
        """Settle the lines that were not run, write the files, and end the batch."""
        now = int(time.time())
        self._closing.close_unfinished(self._claim, now)
        blobs = write_results(
            self._outcomes, self._claim.batch_id, self._blobs, self._check_still_ours
        )
        batch = self._batches.get(self._claim.batch_id)
        lifetime = batch.output_expires_after_seconds or self._job.output_expires_seconds
        new = [
            self._new_file(blob, name, now + lifetime)
            for blob, name in zip(blobs, ("output", "error"), strict=True)
        ]
        try:
            self._closing.publish(self._claim, new[0], new[1], int(time.time()))
        except BaseException:
            for blob in blobs:
                if blob is not None:
                    self._blobs.delete(blob.key)
            raise

    def _new_file(self, blob: StoredBlob | None, name: str, expires_at: int) -> NewFile | None:
        if blob is None:
            return None
        filename = f"{self._claim.batch_id}_{name}.jsonl"
        return NewFile(filename, "batch_output", blob, expires_at)

    def _check_still_ours(self) -> None:
        self._closing.heartbeat(self._claim, time.time(), self._job.lease_seconds)
