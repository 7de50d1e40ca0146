"""Rows of results: what was measured, or why it was not. One JSON object a line."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Row:
    """Runs of one workload by one engine. Shares and ratios are of 1; None: not known."""

    part: str  # the benchmark that the row belongs to
    workload: str
    size: str  # requests and lengths, in words
    engine: str
    version: str
    model: str
    dtype: str
    device: str
    commit: str
    seconds: list[float] = field(default_factory=list)  # of each run, in turn with the others
    ratios: list[float] = field(default_factory=list)  # of these to the plan's, run by run
    prompt_tokens: int = 0
    output_tokens: int = 0
    computed_prompt_tokens: int | None = None
    peak_kv_tokens: int | None = None
    preemptions: int | None = None
    steps: int | None = None
    host_share: float | None = None  # of the seconds, spent on scheduling
    flops: float | None = None  # per second, of a large product in the same run
    bandwidth: float | None = None  # bytes per second, of a large copy in the same run
    floor_s: float | None = None  # products and attention one after the other (LB2)
    lower_bound_s: float | None = None  # all arithmetic under all memory traffic (LB)
    not_measured: str | None = None  # why there are no seconds
    step_tokens: int | None = None  # rows of a step at most
    torch: str | None = None  # the version
    triton: str | None = None  # likewise
    # The first tokens of some outputs agree with the plan's; a look at sanity, not at equality.
    heads_agree: float | None = None

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def logical_tokens_per_second(self) -> float:
        """As if nothing were shared."""
        return (self.prompt_tokens + self.output_tokens) / self.median_seconds

    @property
    def computed_tokens_per_second(self) -> float | None:
        if self.computed_prompt_tokens is None:
            return None
        return (self.computed_prompt_tokens + self.output_tokens) / self.median_seconds

    @property
    def saved_share(self) -> float | None:
        """Of the prompt tokens, those that were not computed."""
        if self.computed_prompt_tokens is None:
            return None
        return 1 - self.computed_prompt_tokens / self.prompt_tokens

    @property
    def share_of_floor(self) -> float | None:
        return None if self.floor_s is None else self.floor_s / self.median_seconds


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace what `path` held: a file is one call's results."""
    write_records(path, map(as_record, rows))


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_rows(path: Path) -> list[Row]:
    """The rows of `path`; none when it does not exist."""
    return [_from_json(record) for record in read_records(path)] if path.exists() else []


def commit_name() -> str:
    """The checkout's commit, marked when files differ from it; "unknown" without git.

    BENCHMARK_COMMIT names it where a copy of the checkout is not git's.
    """
    given = os.environ.get("BENCHMARK_COMMIT")
    if given:
        return given
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    folder = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def cpu_name(threads: int) -> str:
    """The processor, as the system calls it, and how many threads are used."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {threads} threads"


# What a row's reader sees beside the fields, so that a file can be read without this module.
_DERIVED = (
    "median_seconds",
    "logical_tokens_per_second",
    "computed_tokens_per_second",
    "saved_share",
    "share_of_floor",
)


def as_record(row: Row) -> dict[str, Any]:
    """The row's line of a file: what is known, and what follows from it."""
    fields = {name: value for name, value in asdict(row).items() if value not in (None, [])}
    if row.seconds:
        fields |= {name: getattr(row, name) for name in _DERIVED if getattr(row, name) is not None}
    return fields


def _from_json(record: dict[str, Any]) -> Row:
    return Row(**{name: value for name, value in record.items() if name not in _DERIVED})
