"""Blob writers for code that must not wait: making and leaving one may be a request to a bucket."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CancelScope
from anyio.to_thread import run_sync

from trunkline.store.blobs import BlobStore, BlobWriter


@asynccontextmanager
async def blob_writer(blobs: BlobStore) -> AsyncIterator[BlobWriter]:
    """A writer of a new blob, for use in an `async with`; see `BlobWriter`."""
    writer = await run_sync(blobs.writer)
    try:
        yield writer
    finally:
        # What was written is forgotten even when the client has gone away.
        with CancelScope(shield=True):
            await run_sync(writer.__exit__, *sys.exc_info())
