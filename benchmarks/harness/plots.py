"""Draws the rows of results: ratios as bars, a group of bars for each workload."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from harness.rows import Row

mpl.use("Agg")

WIDTH, HEIGHT = 9.0, 4.0  # inches
GROUP_WIDTH = 0.8


def draw_ratios(rows: list[Row], target: Path, title: str, reference: str) -> None:
    """Draw how much longer than `reference` each engine took, with the range of the runs.

    Args:
        rows: of one benchmark.
        target: PNG file.
        title: above the picture.
        reference: name of what the ratios refer to.
    """
    measured = [row for row in rows if row.not_measured is None]
    workloads = list(dict.fromkeys(row.workload for row in measured))
    engines = list(dict.fromkeys(row.engine for row in measured))
    figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
    width = GROUP_WIDTH / len(engines)
    for index, engine in enumerate(engines):
        own = {row.workload: row for row in measured if row.engine == engine}
        places = [i + (index - (len(engines) - 1) / 2) * width for i in range(len(workloads))]
        shown = [(x, own[name]) for x, name in zip(places, workloads, strict=True) if name in own]
        ratios = [row.ratio for _, row in shown]
        ranges = [
            [row.ratio - min(row.ratios) for _, row in shown],
            [max(row.ratios) - row.ratio for _, row in shown],
        ]
        axes.bar([x for x, _ in shown], ratios, width, yerr=ranges, capsize=2, label=engine)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(workloads)), workloads)
    axes.set_ylabel(f"time over that of {reference}")
    axes.set_title(title)
    axes.legend(fontsize="small")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Without the version in it, the file changes with the figures alone.
    figure.savefig(target, dpi=110, metadata={"Software": None})
    plt.close(figure)
