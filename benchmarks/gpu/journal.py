"""The events of a run so far, for the process that goes on after one that died.

An event a line: `begin` and `end` of a part; of each of its cases `left out`, or `case`, its
`result`s and then `done` or `raised`; `wrong` for a result that is not as it should be. A `case`
that is followed by neither `done` nor `raised` ended its process.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gpu.results import RecordFile
from harness.rows import read_records


@dataclass
class PartState:
    """What the events say about a part."""

    name: str
    begun: float | None = None  # seconds since the epoch
    is_ended: bool = False
    seconds: float = 0.0  # from its begin to its last event
    num_considered: int = 0  # cases that were begun or left out
    num_results: int = 0
    open_case: str | None = None  # begun and not through
    wrong: list[str] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """What went wrong, a line each."""
        return [
            *(f"wrong: {name}" for name in self.wrong),
            *(f"failed: {name}" for name in self.raised),
        ]

    @property
    def is_good(self) -> bool:
        """Whether it ran, was not cut off, and all that it checked was right."""
        return self.is_ended and self.num_results > 0 and not self.failures

    def close_case(self) -> None:
        """Note a case that ended its process."""
        if self.open_case is not None:
            self.raised.append(f"{self.open_case}: the process ended in it")
            self.open_case = None


class Journal:
    """Appends events to a file."""

    def __init__(self, path: Path) -> None:
        """Go on behind what `path` has."""
        self.path = path
        self._file = RecordFile(path, is_continued=True)

    def add(self, part: str, event: str, **details: object) -> None:
        """Note that `event` has just happened."""
        self._file.append({"part": part, "event": event, "time": time.time(), **details})


def read_states(path: Path, parts: Iterable[str]) -> dict[str, PartState]:
    """The state of each of `parts`, by name."""
    states = {name: PartState(name) for name in parts}
    for event in read_records(path) if path.exists() else []:
        state = states.get(event["part"])
        if state is None:
            continue
        kind, case = event["event"], event.get("case", "")
        if kind == "begin":
            state.close_case()
            state.begun = event["time"] if state.begun is None else state.begun
        elif kind == "case":
            state.num_considered += 1
            state.open_case = case
        elif kind == "left out":
            state.num_considered += 1
            state.left_out.append(case)
        elif kind == "wrong":
            state.wrong.append(case)
        elif kind == "result":
            state.num_results += 1
        elif kind == "raised":
            state.raised.append(f"{case}: {event['error']}" if case else event["error"])
            state.open_case = None
        elif kind == "done":
            state.open_case = None
        elif kind == "end":
            state.is_ended = True
        if state.begun is not None:
            state.seconds = event["time"] - state.begun
    return states
