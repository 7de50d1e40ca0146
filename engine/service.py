"""The engine process: model loaded, store opened, loop run until a signal says stop."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time

from trunkline.engine.assemble import assemble
from trunkline.engine.config import EngineConfig
from trunkline.engine.loop import Loop, LoopConfig
from trunkline.store.database import Database
from trunkline.store.live import LiveWork
from trunkline.store.location import StoreLocation
from trunkline.store.migrate import upgrade
from trunkline.store.open_blobs import open_blobs
from trunkline.store.records import EngineRecord
from trunkline.store.work import Work

logger = logging.getLogger(__name__)

PARENT_POLL_SECONDS = 1.0
NICENESS = 10


def serve(config: EngineConfig, location: StoreLocation, parent_pid: int | None) -> None:
    """Answer the store's batches until SIGTERM, SIGINT, or until `parent_pid` is gone."""
    if parent_pid is not None:
        # The server on the same processors has little to compute, and people who wait for it.
        # Before anything else: on Linux it is this thread's, and that of threads begun from it.
        os.nice(NICENESS)
    assembly = assemble(config)
    # The model stays: the collector, for which every step waits, need not look at it.
    gc.collect()
    gc.freeze()
    logger.info(
        "model %s loaded in %.1f s: %s on %s, KV cache of %d tokens",
        assembly.model_name,
        assembly.load_seconds,
        assembly.dtype,
        assembly.device,
        assembly.kv_cache_tokens,
    )
    location.data_dir.mkdir(parents=True, exist_ok=True)
    upgrade(location.url)
    database = Database.open(location.url)
    now = time.time()
    record = EngineRecord(
        name=config.engine_name,
        model=assembly.model_name,
        device=assembly.device,
        dtype=assembly.dtype,
        started_at=int(now),
        heartbeat_at=now,
        max_model_tokens=assembly.max_model_tokens,
        figures={},
    )
    loop = Loop(
        Work(database, open_blobs(location)),
        LiveWork(database),
        assembly.engine,
        assembly.admission,
        assembly.summariser,
        record,
        LoopConfig(
            lease_seconds=config.lease_seconds,
            poll_seconds=config.poll_seconds,
            commit_seconds=config.commit_seconds,
            max_held_requests=config.max_held_requests,
        ),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    if parent_pid is not None:
        watch = threading.Thread(target=_stop_with_parent, args=(loop, parent_pid), daemon=True)
        watch.start()
    try:
        loop.run()
    finally:
        database.close()


def _stop_with_parent(loop: Loop, parent_pid: int) -> None:
    """A supervisor that was killed cannot pass a signal on."""
    while os.getppid() == parent_pid:
        time.sleep(PARENT_POLL_SECONDS)
    loop.stop()
