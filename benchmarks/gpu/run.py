"""Runs the parts: `python -m gpu.run [--toy] [PART…]`, which run.sh calls.

The measurements are made by `gpu.visit`, in one process as long as that lives. When it ends early,
by an error that spoils the device for it or by a crash, another one goes on with what is left.
Imports nothing that drives a device.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from gpu.journal import read_states
from gpu.parts import BY_NAME_ONLY, PARTS
from gpu.results import results_file
from gpu.summary import summary

STOP_SECONDS = 10.0


class OutOfTimeError(Exception):
    """The run was asked to end."""


def chosen_parts(arguments: list[str]) -> list[str]:
    """The names that were given, in the order of PARTS; the usual ones when there are none.

    Raises:
        SystemExit: there is no such part.
    """
    unknown = [name for name in arguments if name not in PARTS]
    if unknown:
        print(f"run.sh: there is no part '{unknown[0]}'", file=sys.stderr)
        print(f"allowed are --toy {' '.join(PARTS)}", file=sys.stderr)
        raise SystemExit(2)
    return [
        name for name in PARTS if name in arguments or (not arguments and name not in BY_NAME_ONLY)
    ]


def visit(parts: list[str], environment: Mapping[str, str]) -> None:
    """Run `parts` to their ends, in as many processes as it takes.

    Raises:
        OutOfTimeError: see there.
    """
    while True:
        before = _num_considered(parts)
        process = subprocess.Popen([sys.executable, "-m", "gpu.visit", *parts], env=environment)
        try:
            status = process.wait()
        except OutOfTimeError:
            _stop(process)
            raise
        # Without progress it would end in the same place again.
        if status == 0 or _num_considered(parts) == before:
            return
        print(f"the process ended with status {status}", file=sys.stderr, flush=True)


def _num_considered(parts: list[str]) -> int:
    states = read_states(results_file("visit"), parts).values()
    return sum(state.num_considered + state.is_ended for state in states)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end(*_: object) -> None:
    raise OutOfTimeError


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--toy"]
    environment = dict(os.environ)
    if "--toy" in sys.argv[1:]:
        environment["TRUNKLINE_BENCH_TOY"] = environment["TRITON_INTERPRET"] = "1"
    parts = chosen_parts(arguments)
    # What an earlier call found says nothing about this one.
    for name in ("visit", *parts):
        Path(results_file(name)).unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, _end)
    try:
        for group in (
            [name for name in parts if name not in BY_NAME_ONLY],
            [name for name in parts if name in BY_NAME_ONLY],
        ):
            if group:
                visit(group, environment)
    except OutOfTimeError:
        print("out of time", file=sys.stderr)
    states = list(read_states(results_file("visit"), parts).values())
    print("\n".join(["== summary", *summary(states)]), flush=True)
    sys.exit(0 if all(state.is_good for state in states) else 1)


if __name__ == "__main__":
    main()
