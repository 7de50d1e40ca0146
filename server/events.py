"""Server-sent events: a batch's state as it changes, for whoever watches."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi.sse import format_sse_event

from trunkline.server.wire import batch_object
from trunkline.store.records import BatchRecord
from trunkline.store.states import is_terminal

POLL_SECONDS = 1.0
# Proxies close a connection on which nothing comes.
KEEP_ALIVE_SECONDS = 15.0


async def batch_events(
    first: BatchRecord, read: Callable[[], Awaitable[BatchRecord]], stopping: threading.Event
) -> AsyncIterator[bytes]:
    """The batch at once, then whenever it has changed, until it has ended.

    Args:
        first: the batch now.
        read: reads it again.
        stopping: ends the stream, so that a server need not wait for whoever watches.
    """
    batch = first
    yield _event(batch)
    silent_seconds = 0.0
    while not is_terminal(batch.status) and not stopping.is_set():
        await asyncio.sleep(POLL_SECONDS)
        silent_seconds += POLL_SECONDS
        latest = await read()
        if latest != batch:
            batch = latest
            yield _event(batch)
            silent_seconds = 0.0
        elif silent_seconds >= KEEP_ALIVE_SECONDS:
            yield b": still here\n\n"
            silent_seconds = 0.0


def _event(batch: BatchRecord) -> bytes:
    return format_sse_event(event="batch", data_str=json.dumps(batch_object(batch)))
