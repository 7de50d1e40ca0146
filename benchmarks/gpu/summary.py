"""The states of parts as lines of text."""

from __future__ import annotations

from collections.abc import Iterable

from gpu.journal import PartState

MOST_NAMES = 6  # of what was left out


def part_line(state: PartState) -> str:
    """One line: how the part ended, what it found, what it left out."""
    if state.begun is None:
        return f"NOT RUN  {state.name}"
    if not state.is_ended:
        verdict = "CUT"
    elif state.failures:
        verdict = "FAILED"
    else:
        verdict = "ok" if state.is_good else "NOT RUN"
    counts = [f"{state.num_results} results in {state.seconds:.0f} s"]
    counts += [f"{len(state.wrong)} wrong"] if state.wrong else []
    counts += [f"{len(state.raised)} failed"] if state.raised else []
    counts += [f"{len(state.left_out)} left out for time"] if state.left_out else []
    return f"{verdict:8} {state.name}: {', '.join(counts)}"


def summary(states: Iterable[PartState]) -> list[str]:
    """All parts, each with what went wrong and the names of what was left out."""
    lines = []
    for state in states:
        lines.append(part_line(state))
        lines += [f"           {failure}" for failure in state.failures]
        if not state.is_ended and state.open_case is not None:
            lines.append(f"           cut in: {state.open_case}")
        if state.left_out:
            more = len(state.left_out) - MOST_NAMES
            names = state.left_out[:MOST_NAMES] + ([f"and {more} more"] if more > 0 else [])
            lines.append(f"           left out for time: {'; '.join(names)}")
    return lines
