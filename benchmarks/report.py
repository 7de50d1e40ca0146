"""Renders benchmarks/results/*.jsonl into docs/benchmarks.md: tables, and pictures beside it.

    python benchmarks/report.py

Needs matplotlib (`pip install -e '.[bench]'`).
"""

from __future__ import annotations

from pathlib import Path

from harness.markdown import replace_results
from harness.plots import draw_ratios
from harness.rows import RESULTS, read_rows

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = (
    ("compare", "Trunkline beside other engines", "Trunkline"),
    ("cpu", "The plan beside the engine's own baselines", "the plan"),
)


def main() -> None:
    page = DOCS / "benchmarks.md"
    page.write_text(replace_results(page.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
    for part, title, reference in PICTURES:
        rows = read_rows(RESULTS / f"{part}.jsonl")
        if any(row.not_measured is None for row in rows):
            draw_ratios(rows, DOCS / "pictures" / f"{part}.png", title, reference)


if __name__ == "__main__":
    main()
