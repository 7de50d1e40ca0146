"""Contestants answer the same jobs in turn, so that a slow minute hits all of them.

`Succession` is for those that do not fit beside each other: one begins when another has ended.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.contestant import Contestant
from harness.environments import PeerUnavailableError
from harness.floor import bounds_of
from harness.rows import Row, commit_name
from harness.sizes import Size
from peers.protocol import Job
from trunkline.engine.simulation.hardware import Hardware, ModelShape
from trunkline.engine.simulation.workloads import WorkItem


@dataclass(frozen=True)
class Entry:
    """A contestant under one of its settings."""

    label: str
    contestant: Contestant
    request: dict[str, object] = field(default_factory=dict)
    takes_kv_limit: bool = False  # else it sits out workloads whose cache is limited


@dataclass(frozen=True)
class Setup:
    """What all rows of a call have in common."""

    part: str
    model: str
    dtype: str
    device: str
    shape: ModelShape


def duel(
    setup: Setup, sizes: Iterable[Size], entries: list[Entry], repeat: int, scratch: Path
) -> list[Row]:
    """Every entry answers every workload `repeat` times, in turn.

    Args:
        setup: goes into the rows.
        sizes: the workloads.
        entries: the first is what the ratios refer to, and what the floor is measured with.
        repeat: runs of each.
        scratch: folder for the jobs.
    """
    rows = []
    given_up: dict[str, str] = {}  # why an entry has ended, by label
    for size in sizes:
        items, job = _written_job(size, scratch)
        taking_part = [e for e in entries if size.kv_tokens is None or e.takes_kv_limit]
        replies, failures = _run_in_turn(size, job, taking_part, repeat, given_up)
        ended = [e.label for e in taking_part if e.contestant.has_ended]
        given_up |= {label: failures[label] for label in ended}
        rows += _rows(setup, size, items, taking_part, replies, failures)
        job.unlink()
    return rows


class Succession:
    """Contestants that have a machine to themselves, the first of which is what ratios refer to."""

    def __init__(self, setup: Setup, repeat: int, scratch: Path) -> None:
        """See `duel`."""
        self._setup = setup
        self._repeat = repeat
        self._scratch = scratch
        self._first: Entry | None = None
        self._replies: dict[Size, list[dict[str, Any]]] = {}

    def run(self, size: Size, entry: Entry) -> Row:
        """The row of a workload that `entry` answers.

        Raises:
            PeerUnavailableError: it fails.
            LookupError: the first has not answered this workload.
        """
        items, job = _written_job(size, self._scratch)
        first = self._first = self._first or entry
        try:
            replies, _ = _run_in_turn(size, job, [entry], self._repeat, {})
        finally:
            job.unlink()
        if entry is first:
            self._replies[size] = replies[entry.label]
        if size not in self._replies:
            raise LookupError(f"{first.label} has not answered {size.workload}")
        both = {first.label: self._replies[size]} | replies
        entries = [first] if entry is first else [first, entry]
        return _rows(self._setup, size, items, entries, both, {})[-1]


def _written_job(size: Size, scratch: Path) -> tuple[list[WorkItem], Path]:
    """The requests of a workload, and the file of them for contestants."""
    items = size.make()
    job = scratch / f"{size.workload}.json"
    outputs = [item.num_output_tokens for item in items]
    Job([item.prompt.tolist() for item in items], outputs).write(job)
    return items, job


def missing_row(setup: Setup, size: Size, name: str, reason: str) -> Row:
    """A peer that could not be measured."""
    return Row(
        part=setup.part,
        workload=size.workload,
        size=f"{size.description}; {size.text}",
        engine=name,
        version="",
        model=setup.model,
        dtype=setup.dtype,
        device=setup.device,
        commit=commit_name(),
        not_measured=reason,
    )


Replies = dict[str, list[dict[str, Any]]]


def _run_in_turn(
    size: Size, job: Path, entries: list[Entry], repeat: int, given_up: dict[str, str]
) -> tuple[Replies, dict[str, str]]:
    """The replies of each entry, and why some failed, now or before."""
    replies: Replies = {entry.label: [] for entry in entries}
    failures = {e.label: given_up[e.label] for e in entries if e.label in given_up}
    for number in range(repeat):
        for entry in entries:
            if entry.label in failures:
                continue
            try:
                limit = {} if size.kv_tokens is None else {"kv_tokens": size.kv_tokens}
                reply = entry.contestant.run(job, **entry.request, **limit)
            except PeerUnavailableError as error:
                if entry is entries[0]:
                    raise
                failures[entry.label] = str(error)
                print(f"{size.workload} {entry.label}: {error}", file=sys.stderr)
                continue
            replies[entry.label].append(reply)
            print(
                f"{size.workload} {entry.label}: {reply['seconds']:.1f} s "
                f"(run {number + 1} of {repeat})",
                file=sys.stderr,
                flush=True,
            )
    return replies, failures


def _rows(
    setup: Setup,
    size: Size,
    items: list[WorkItem],
    entries: list[Entry],
    replies: Replies,
    failures: dict[str, str],
) -> list[Row]:
    reference = replies[entries[0].label]
    own = [reply["details"] for reply in reference]
    hardware = Hardware(
        name="measured",
        flops=statistics.median(details["flops"] for details in own),
        bandwidth=statistics.median(details["bandwidth"] for details in own),
        memory_bytes=entries[0].contestant.details["memory_bytes"],
        step_seconds=0.0,
        is_measured=True,
    )
    bounds = bounds_of(items, hardware, setup.shape)
    rows = []
    for entry in entries:
        if entry.label in failures:
            rows.append(missing_row(setup, size, entry.label, failures[entry.label]))
            continue
        answered = replies[entry.label]
        seconds = [reply["seconds"] for reply in answered]
        details = answered[0]["details"]
        rows.append(
            Row(
                part=setup.part,
                workload=size.workload,
                size=f"{size.description}; {size.text}",
                engine=entry.label,
                version=entry.contestant.version,
                model=setup.model,
                dtype=setup.dtype,
                device=setup.device,
                commit=commit_name(),
                seconds=[round(value, 3) for value in seconds],
                ratios=[
                    round(value / base["seconds"], 3)
                    for value, base in zip(seconds, reference, strict=True)
                ],
                prompt_tokens=sum(len(item.prompt) for item in items),
                output_tokens=answered[0]["output_tokens"],
                computed_prompt_tokens=details.get("computed_prompt_tokens"),
                peak_kv_tokens=details.get("peak_kv_tokens"),
                preemptions=details.get("preemptions"),
                steps=details.get("steps"),
                host_share=_median_of(answered, "host_share"),
                flops=round(hardware.flops),
                bandwidth=round(hardware.bandwidth),
                floor_s=round(bounds.floor, 3),
                lower_bound_s=round(bounds.lower, 3),
                heads_agree=_agreement(answered[0], reference[0]),
            )
        )
    return rows


def _median_of(replies: list[dict[str, Any]], name: str) -> float | None:
    values = [reply["details"][name] for reply in replies if name in reply["details"]]
    return round(statistics.median(values), 4) if values else None


def _agreement(reply: dict[str, Any], reference: dict[str, Any]) -> float:
    """Share of the outputs that begin with the same token."""
    pairs = list(zip(reply["outputs_head"], reference["outputs_head"], strict=True))
    return float(np.mean([mine[:1] == other[:1] for mine, other in pairs]))
