"""Deletes blobs that no row refers to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice

from sqlalchemy import select, union

from trunkline.store.blobs import BlobStore
from trunkline.store.database import Database
from trunkline.store.schema import files, upload_parts

logger = logging.getLogger(__name__)

MIN_AGE_SECONDS = 86_400.0
INTERVAL_SECONDS = 3600.0
CHUNK_KEYS = 5000
MAX_DELETED = 50_000  # in one run


class OrphanSweep:
    """Finds what a process left that ended between a blob and its row, or between a row's end and
    its blob's.

    A blob is committed before its row. Whatever has none a day later will never have one: nothing
    takes so long, and keys are not used again.
    """

    def __init__(
        self, database: Database, blobs: BlobStore, min_age_seconds: float = MIN_AGE_SECONDS
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._min_age_seconds = min_age_seconds
        self._next_run_at = 0.0

    def run_when_due(self, now: float) -> int:
        """As `run`, but not more often than once an hour: it goes through all blobs."""
        if now < self._next_run_at:
            return 0
        self._next_run_at = now + INTERVAL_SECONDS
        return self.run()

    def run(self) -> int:
        """Delete the blobs without a row; how many there were.

        Deletes nothing when no blob at all has a row. More likely than such an installation is a
        new database, or another installation's, beside these blobs.
        """
        keys = self._blobs.list_keys(self._min_age_seconds)
        orphans: list[str] = []
        num_known = 0
        while len(orphans) < MAX_DELETED and (chunk := list(islice(keys, CHUNK_KEYS))):
            known = self._with_row(chunk)
            num_known += len(known)
            orphans += [key for key in chunk if key not in known]
        if orphans and num_known == 0:
            logger.warning(
                "%d blobs, and the database knows none of them; they are kept. Is it the database "
                "of this installation?",
                len(orphans),
            )
            return 0
        for key in orphans:
            self._blobs.delete(key)
        if orphans:
            logger.info("%d blobs deleted that no file refers to", len(orphans))
        return len(orphans)

    def _with_row(self, keys: Sequence[str]) -> set[str]:
        query = union(
            select(files.c.blob_key).where(files.c.blob_key.in_(keys)),
            select(upload_parts.c.blob_key).where(upload_parts.c.blob_key.in_(keys)),
        )
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())
