"""One process that measures part after part: `python -m gpu.visit PART…`.

It goes on where the journal ends, behind the case that ended the process before. `gpu.run` starts
it, and starts it again when it has ended early.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing

from gpu.clock import Clock
from gpu.journal import Journal, read_states
from gpu.machine import describe, header, is_usable, kernels, synchronise, use_kernels
from gpu.parts import PARTS, Case, Part, Record
from gpu.results import RecordFile, results_file
from gpu.summary import part_line

# The exit status when an error has left the device unusable for this process.
POISONED = 75


def first_lines() -> list[str]:
    """What runs here, and what may keep its Triton from finding kernels compiled elsewhere."""
    return [*use_kernels(), describe()]


def run_part(part: Part, journal: Journal) -> None:
    """Measure what the part has not measured yet, as far as its budget goes.

    Raises:
        SystemExit: with POISONED, when only another process can go on.
    """
    state = read_states(journal.path, [part.name])[part.name]
    is_continued = state.begun is not None
    journal.add(part.name, "begin")
    clock = Clock(time.time() if state.begun is None else state.begun, part.budget)
    print(f"== {part.name}, {max(clock.left, 0):.0f} s{', continued' * is_continued}", flush=True)
    with closing(RecordFile(results_file(part.name), is_continued=is_continued)) as file:
        try:
            module = importlib.import_module(part.module)
            with closing(module.cases()) as cases:
                for number, case in enumerate(cases):
                    if number < state.num_considered:
                        continue
                    if clock.allows() and clock.allows(case.seconds()):
                        run_case(part, case, module.line, file, journal)
                    else:
                        journal.add(part.name, "left out", case=case.name)
        except Exception as error:
            report(part, "", error, journal)
    journal.add(part.name, "end")
    print(part_line(read_states(journal.path, [part.name])[part.name]), flush=True)
    end_if_poisoned(part)


def run_case(
    part: Part, case: Case, line: Callable[[Record], str], file: RecordFile, journal: Journal
) -> None:
    """Write and print the records of a case; one that raises does not end the part.

    Raises:
        SystemExit: see `run_part`.
    """
    journal.add(part.name, "case", case=case.name)
    try:
        for record in case.measure():
            whole = header(part.name) | record
            file.append(whole)
            journal.add(part.name, "result")
            print(line(whole), flush=True)
            if record.get("is_good") is False:
                journal.add(part.name, "wrong", case=record.get("case", case.name))
        synchronise()  # or an error would come to light in the next case
    except Exception as error:
        report(part, case.name, error, journal)
    else:
        journal.add(part.name, "done")
        return
    end_if_poisoned(part)


def report(part: Part, case: str, error: Exception, journal: Journal) -> None:
    """Note an exception, and print where it comes from."""
    lines = str(error).strip().splitlines() or ["no message"]
    journal.add(part.name, "raised", case=case, error=f"{type(error).__name__}: {lines[0]}")
    print(f"{part.name}: {case or 'between its measurements'}:", file=sys.stderr)
    traceback.print_exception(error)


def end_if_poisoned(part: Part) -> None:
    """End the process when every use of the device fails since an error."""
    if not is_usable():
        print(f"{part.name}: the device refuses this process", file=sys.stderr, flush=True)
        sys.exit(POISONED)


def main() -> None:
    print("\n".join(first_lines()), flush=True)
    names = sys.argv[1:]
    journal = Journal(results_file("visit"))
    states = read_states(journal.path, names)
    try:
        for name in names:
            if not states[name].is_ended:
                run_part(PARTS[name], journal)
        print(f"== kernels: {kernels()}", flush=True)
    except SystemExit as end:
        if end.code == POISONED:
            # To release what the device holds may hang, or abort.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(POISONED)
        raise


if __name__ == "__main__":
    main()
