"""A program that answers jobs, as a process of its own that stands still while others run."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.environments import PeerUnavailableError
from peers.protocol import Options

START_SECONDS = 900
RUN_SECONDS = 3600
STOP_SECONDS = 20
BENCHMARKS = Path(__file__).parents[1]
SOURCES = BENCHMARKS.parent / "src"


class Contestant:
    """One engine. Between its runs all of its processes are stopped, also their idle loops."""

    def __init__(
        self,
        name: str,
        python: Path,
        program: Path,
        options: Options,
        log: Path,
        environment: Mapping[str, str] | None = None,
        import_paths: tuple[Path, ...] = (BENCHMARKS,),
        run_seconds: float = RUN_SECONDS,
    ) -> None:
        """Start the program and wait until it is ready.

        Args:
            run_seconds: a run that takes longer is given up, and the program with it.

        Raises:
            PeerUnavailableError: it ended, or was not ready in time; the log says more.
        """
        self.name = name
        self._log = log
        self._run_seconds = run_seconds
        command = [str(python), str(program), "--model", str(options.model)]
        command += ["--dtype", options.dtype, "--threads", str(options.threads)]
        command += ["--kv-bytes", str(options.kv_bytes)]
        command += ["--dummy"] if options.is_dummy else []
        variables = {**os.environ, **(environment or {})}
        variables["PYTHONPATH"] = os.pathsep.join(map(str, import_paths))
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # a group of its own, to stop and to end as a whole
                env=variables,
            )
        try:
            ready = self._receive(START_SECONDS)
        except PeerUnavailableError:
            self.close()
            raise
        self.version: str = ready["ready"]
        self.details: dict[str, Any] = ready["details"]
        self._signal(signal.SIGSTOP)

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, job: Path, **request: object) -> dict[str, Any]:
        """Answer `job`; the program's reply.

        Raises:
            PeerUnavailableError: the program failed, and what it said.
        """
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"job": str(job), **request}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._unavailable("ended") from None
        try:
            reply = self._receive(self._run_seconds)
        except PeerUnavailableError:
            # Or it would go on beside those that are measured.
            self._signal(signal.SIGKILL)
            self._process.wait()
            raise
        self._signal(signal.SIGSTOP)
        if "error" in reply:
            raise PeerUnavailableError(f"{self.name}: {reply['error']}")
        return reply

    @property
    def has_ended(self) -> bool:
        """Whether there is no program any more to answer a job."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End the program and whatever it started."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"{self.name} does not end; it is killed", file=sys.stderr)
        self._signal(signal.SIGKILL)  # also to helpers that outlive their parent
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _receive(self, timeout_seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_seconds):
                raise self._unavailable(f"gave no answer within {timeout_seconds:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._unavailable("ended")
        received: dict[str, Any] = json.loads(line)
        return received

    def _unavailable(self, what: str) -> PeerUnavailableError:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line]
        said = next((line for line in reversed(lines) if "Error" in line), "nothing on stderr")
        return PeerUnavailableError(f"{self.name} {what}: {said.strip()}")

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return
