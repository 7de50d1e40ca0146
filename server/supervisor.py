"""Keeps an engine process running beside the server."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from trunkline.options import EXIT_BAD_CONFIG

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# An engine that ran for so long was well: the next pause is short again.
HEALTHY_SECONDS = 60.0
# How long a stopping engine may take for its step and its last commit.
STOP_SECONDS = 30.0


class EngineSupervisor:
    """Starts the engine, and again when it dies, after a pause that grows."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        on_bad_config: Callable[[], None],
    ) -> None:
        """Supervise `trunkline engine ARGUMENTS`.

        Args:
            arguments: of the engine.
            environment: variables of the engine beside this process's own.
            on_bad_config: called when the engine says that its configuration cannot work.
        """
        self._command = [
            *(sys.executable, "-m", "trunkline", "engine", *arguments),
            *("--parent-pid", str(os.getpid())),
        ]
        self._environment = {**os.environ, **environment}
        self._on_bad_config = on_bad_config
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the engine commit what it has, and wait for its end."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            started = time.monotonic()
            status = self._run_once()
            if self._stopping.is_set():
                return
            if status == EXIT_BAD_CONFIG:
                self._on_bad_config()
                return
            if time.monotonic() - started > HEALTHY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            logger.warning("the engine ended with status %d; restart in %.1f s", status, pause)
            self._stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _run_once(self) -> int:
        """Run the engine until it ends or `stop` is called; its exit status."""
        # In a session of its own: Ctrl-C reaches the server alone, which then stops the engine.
        with subprocess.Popen(
            self._command, env=self._environment, start_new_session=True
        ) as process:
            while process.poll() is None:
                if self._stopping.wait(0.1):
                    process.terminate()
                    try:
                        return process.wait(STOP_SECONDS)
                    except subprocess.TimeoutExpired:
                        logger.warning("the engine does not stop; killed")
                        process.kill()
            return process.wait()
