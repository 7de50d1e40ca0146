"""The one process that runs the server's heavy jobs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection

from trunkline.server.jobs import Job, run_job
from trunkline.store.states import BatchStatus


class Worker:
    """Runs one job after the other in a process that is started when it is first needed.

    The process holds one end of a pipe and ends as soon as the other end is closed, whatever it is
    doing: when `stop` closes it, and when the server is killed and the system does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_stopped = False
        self._pool: ProcessPoolExecutor | None = None
        self._lifeline: Connection | None = None

    def submit(self, job: Job) -> Future[BatchStatus | None]:
        """Begin `job`. Its future raises BrokenProcessPool when the process ends under it.

        Raises:
            BrokenProcessPool: the worker is stopped, or its process has ended; unless stopped, the
                next call starts another.
        """
        with self._lock:
            if self._is_stopped:
                raise BrokenProcessPool("the worker is stopped")
            if self._pool is None:
                self._pool, self._lifeline = _start()
            try:
                return self._pool.submit(run_job, job)
            except BrokenProcessPool:
                self._close()
                raise

    def replace(self) -> None:
        """Let the next job have a fresh process."""
        with self._lock:
            self._close()

    def stop(self) -> None:
        """End the process at once."""
        with self._lock:
            self._is_stopped = True
            self._close()

    def _close(self) -> None:
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _start() -> tuple[ProcessPoolExecutor, Connection]:
    # A fresh interpreter: the server's threads and sockets do not go with it.
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        max_workers=1, mp_context=context, initializer=_set_up_process, initargs=(theirs,)
    )
    return pool, ours


def _set_up_process(lifeline: Connection) -> None:
    # Ctrl-C reaches every process of the terminal; it is for the server to decide what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(0)
