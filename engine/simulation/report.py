"""Prints what simulated runs would be like."""

from __future__ import annotations

import json
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from trunkline.engine.simulation.hardware import Hardware, ModelShape
from trunkline.engine.simulation.simulate import Setting, Simulation, simulate
from trunkline.engine.simulation.workloads import WorkItem
from trunkline.options import ConfigError


def print_simulations(
    items: list[WorkItem],
    hardware: Hardware,
    shape: ModelShape,
    settings: Iterable[Setting],
    max_batch_tokens: int | None,
    *,
    as_json: bool,
) -> None:
    """Simulate `items` under each of `settings` and print the figures.

    Raises:
        ConfigError: model or requests do not fit the hardware.
    """
    try:
        runs = [simulate(items, hardware, shape, one, max_batch_tokens) for one in settings]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if as_json:
        for run in runs:
            print(json.dumps(run.as_json()))  # noqa: T201
        return
    origin = "measured rates" if hardware.is_measured else "rates estimated from the data sheet"
    title = f"{len(items)} requests, {shape.name} on {hardware.name} ({origin})"
    Console().print(_table(runs, title))


def _table(runs: list[Simulation], title: str) -> Table:
    # Without space at the edges and twice between columns it fits 80 characters.
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("setting", no_wrap=True)
    for name in ("seconds", "steps", "peak\nKV", "saved", "idle", "of\nfloor", "preempted"):
        table.add_column(name, justify="right")
    for run in runs:
        table.add_row(
            run.setting,
            f"{run.seconds:.1f}",
            str(run.steps),
            f"{run.peak_kv_tokens / run.kv_capacity_tokens:.0%}",
            f"{run.saved_share:.1%}",
            f"{run.idle_share:.0%}",
            f"{run.share_of_floor:.0%}",
            str(run.preemptions),
        )
    return table
