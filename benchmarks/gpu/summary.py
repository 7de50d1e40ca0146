"""Prints what the parts found, from the files that they wrote: `python -m gpu.summary PART…`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from gpu.results import results_file
from harness.rows import Row, read_records, read_rows

Record = dict[str, Any]


def verdicts(records: list[Record]) -> list[str]:
    wrong = [record["case"] for record in records if not record["is_good"]]
    head = f"{len(records) - len(wrong)} of {len(records)} checks are good"
    return [head, *(f"  WRONG: {case}" for case in wrong)]


def timings(records: list[Record]) -> list[str]:
    lines = ["        us     GB/s  TFLOP/s  of peak  ratio"]
    for record in records:
        ratio = "" if record["ratio"] is None else f"{record['ratio']:.2f}"
        rates = f"{record['gb_per_second']:8.0f} {record['tflops']:8.1f}"
        lines.append(
            f"{record['microseconds']:10.1f} {rates} {record['share_of_peak']:8.1%} {ratio:>6}  "
            f"{record['case']}"
        )
    return lines


def kernel_shares(records: list[Record]) -> list[str]:
    return [
        f"{record['share']:7.1%} {record['milliseconds']:10.2f} ms  {record['kernel'][:70]}"
        for record in records
    ]


def rows(found: list[Row]) -> list[str]:
    lines = ["   seconds  ratio  of floor  saved"]
    for row in found:
        name = f"{row.model}, {row.workload}, {row.engine} ({row.size})"
        if row.not_measured is not None:
            lines.append(f"not measured: {name}: {row.not_measured}")
            continue
        saved = "" if row.saved_share is None else f"{row.saved_share:.1%}"
        lines.append(
            f"{row.median_seconds:10.2f} {row.ratio:6.2f} {row.share_of_floor or 0:9.1%} "
            f"{saved:>6}  {name}"
        )
    return lines


RENDERERS: dict[str, Callable[[list[Record]], list[str]]] = {
    "kernels": verdicts,
    "equality": verdicts,
    "kernel-bench": timings,
    "profile": kernel_shares,
}


def main() -> None:
    for part in sys.argv[1:]:
        path = results_file(part)
        print(f"== {part}")
        if not path.exists():
            print("no results")
        elif part in RENDERERS:
            print("\n".join(RENDERERS[part](read_records(path))))
        else:
            print("\n".join(rows(read_rows(path))))


if __name__ == "__main__":
    main()
