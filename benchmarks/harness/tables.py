"""What a call prints when it is through."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harness.rows import Row


def print_rows(rows: list[Row]) -> None:
    """Medians and spreads; the ratio is the engine's seconds over the plan's, run by run."""
    table = Table(box=SIMPLE_HEAD)
    for column in ("workload", "engine", "seconds", "spread", "ratio", "computed", "of floor"):
        is_name = column in {"workload", "engine"}
        table.add_column(column, justify="left" if is_name else "right", no_wrap=True)
    for row in rows:
        if row.not_measured is not None:
            table.add_row(row.workload, row.engine, "not measured", "", "", "", "")
            continue
        saved, of_floor = row.saved_share, row.share_of_floor
        table.add_row(
            row.workload,
            row.engine,
            f"{row.median_seconds:.1f}",
            f"{min(row.seconds):.1f} to {max(row.seconds):.1f}",
            f"{row.ratio:.2f}",
            "" if saved is None else f"{1 - saved:.0%}",
            "" if of_floor is None else f"{of_floor:.0%}",
        )
    Console().print(table)
    for row in rows:
        if row.not_measured is not None:
            Console().print(f"{row.workload} {row.engine}: {row.not_measured}")
