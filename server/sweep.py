"""Deletes what nobody needs any more: expired files, ended uploads, requests that nobody waits for,
blobs without a row."""

from __future__ import annotations

import logging

from trunkline.store.blobs import BlobStore
from trunkline.store.database import Database
from trunkline.store.files import FileExpiry
from trunkline.store.live import LiveRequests
from trunkline.store.orphans import OrphanSweep
from trunkline.store.uploads import UploadSweep

logger = logging.getLogger(__name__)

# A writer that has not moved for so long was given up.
ABANDONED_SECONDS = 3600.0


class Sweep:
    """All that is to be swept. Several servers may do so at once."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._files = FileExpiry(database)
        self._uploads = UploadSweep(database, blobs)
        self._live = LiveRequests(database)
        self._orphans = OrphanSweep(database, blobs)
        self._blobs = blobs

    def run(self, now: int) -> None:
        """Delete what has come to its end at `now`, unix seconds."""
        while expired := self._files.take_expired(now):
            for file in expired:
                self._blobs.delete(file.blob_key)
            logger.info("%d expired files deleted", len(expired))
        num_expired = self._uploads.run(now)
        if num_expired:
            logger.info("%d uploads were not completed in time", num_expired)
        num_left = self._live.sweep(now)
        if num_left:
            logger.info("%d requests were left by servers that have died", num_left)
        self._blobs.sweep_temporary(ABANDONED_SECONDS)
        self._orphans.run_when_due(now)
