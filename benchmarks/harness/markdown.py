"""Renders the files of results as the tables of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.rows import Row, read_records, read_rows

START = "<!-- what follows is made by benchmarks/report.py; a test compares the two -->"
END = "<!-- end of what is made -->"

Record = dict[str, Any]


def replace_results(document: str, results: Path) -> str:
    """`document` with the part between the markers made anew.

    Raises:
        ValueError: the markers are not there.
    """
    if document.count(START) != 1 or document.count(END) != 1:
        raise ValueError(f"the document needs one {START!r} and one {END!r}")
    before, _, rest = document.partition(START)
    after = rest.partition(END)[2]
    return f"{before}{START}\n\n{render(results)}\n{END}{after}"


def render(results: Path) -> str:
    """All sections that there are results for, and what there are none for."""
    sections = [
        _rows_section(
            "Beside other engines",
            read_rows(results / "compare.jsonl"),
            "Ratio: the engine's time over Trunkline's, run by run; above 1, Trunkline is faster.",
            picture="pictures/compare.png",
        ),
        _rows_section(
            "The plan beside the engine's own baselines",
            read_rows(results / "cpu.jsonl"),
            "Ratio: the setting's time over the plan's, run by run; above 1, the plan is faster.",
            picture="pictures/cpu.png",
        ),
        _profile_section(results / "profile_cpu.jsonl"),
        _planning_section(results / "planning.jsonl"),
        _gpu_sections(results),
    ]
    return "\n".join(sections)


def _rows_section(title: str, rows: list[Row], legend: str, picture: str | None = None) -> str:
    if not rows:
        return f"## {title}\n\nNot measured.\n"
    first = rows[0]
    lines = [f"## {title}", ""]
    lines += [
        f"{first.model} in {first.dtype}; {first.device}; commit `{first.commit}`. {legend}",
        "",
    ]
    header = ("workload", "engine", "ratio", "range", "prefill saved", "peak KV", "of the floor")
    lines += _table(header, (cells for row in rows if (cells := _row_cells(row))))
    missing: dict[tuple[str, str], list[str]] = {}  # workloads by engine and reason
    for row in rows:
        if row.not_measured is not None:
            reason = row.not_measured.removeprefix(f"{row.engine} ")
            missing.setdefault((row.engine, reason), []).append(row.workload)
    for (engine, reason), workloads in sorted(missing.items()):
        lines.append(f"\nNot measured: {engine} on {' and '.join(workloads)}: {reason}.")
    if picture is not None and any(row.not_measured is None for row in rows):
        lines.append(f"\n![{title}]({picture})")
    sizes = {row.workload: row.size for row in rows}
    lines += ["", *(f"- {workload}: {size}" for workload, size in sizes.items())]
    return "\n".join(lines) + "\n"


def _row_cells(row: Row) -> tuple[str, ...] | None:
    if row.not_measured is not None:
        return None
    runs = f"{min(row.ratios):.2f} to {max(row.ratios):.2f}" if len(row.ratios) > 1 else "one run"
    steps = "" if row.step_tokens is None else f", steps of {row.step_tokens:,}"
    return (
        row.workload,
        f"{row.engine} {row.version}".strip() + steps,
        f"{row.ratio:.2f}" if row.ratios else "",
        runs,
        _percent(row.saved_share),
        "" if row.peak_kv_tokens is None else f"{row.peak_kv_tokens:,} tokens",
        _percent(row.share_of_floor),
    )


def _profile_section(path: Path) -> str:
    title = "## Where a step's time goes"
    records = read_records(path) if path.exists() else []
    if not records:
        return f"{title}\n\nNot measured.\n"
    phases = list(records[0]["shares"])
    rows = [(phase, *(f"{record['shares'][phase]:.1%}" for record in records)) for phase in phases]
    head = f"Of the time of all steps, on the CPU ({records[0]['device']})."
    body = _table(("phase", *(record["workload"] for record in records)), rows)
    return "\n".join([title, "", head, "", *body]) + "\n"


def _planning_section(path: Path) -> str:
    title = "## Planning and scheduling"
    records = read_records(path) if path.exists() else []
    if not records:
        return f"{title}\n\nNot measured.\n"
    plans = [record for record in records if record["kind"] == "plan"]
    steps = [record for record in records if record["kind"] == "steps"]
    lines = [title, "", "On one core, with token ids given.", ""]
    lines += _table(
        ("prompts", "tokens of each", "planned in", "memory over the tokens' bytes", "saved"),
        (
            (
                f"{record['prompts']:,}",
                f"{record['length']:,}",
                f"{record['seconds']:.2f} s",
                f"{record['memory_over_tokens']:.1f} x",
                f"{record['saved_share']:.1%}",
            )
            for record in plans
        ),
    )
    lines.append("")
    lines += _table(
        ("running", "waiting", "host time of a step, median", "90th percentile"),
        (
            (
                f"{record['running']:,.0f}",
                f"{record['waiting']:,}",
                f"{record['milliseconds']:.2f} ms",
                f"{record['milliseconds_p90']:.2f} ms",
            )
            for record in steps
        ),
    )
    return "\n".join(lines) + "\n"


def _gpu_sections(results: Path) -> str:
    if not any(results.glob("gpu-*.jsonl")):
        return "## On a GPU\n\nNothing has been measured on a GPU.\n"
    legend = "Ratio: the engine's time over the plan's."
    sections = [
        _rows_section(title, rows, legend)
        for part, title in (
            ("end-to-end", "On a GPU: whole workloads, random weights"),
            ("peer", "On a GPU: beside vLLM"),
        )
        if (rows := read_rows(results / f"gpu-{part}.jsonl"))
    ]
    bench = results / "gpu-kernel-bench.jsonl"
    if bench.exists():
        sections.append(_kernel_section(read_records(bench)))
    return "\n".join(sections)


def _kernel_section(records: list[Record]) -> str:
    first = records[0]
    rates = f"{first['flops'] / 1e12:.0f} TFLOP/s and {first['bandwidth'] / 1e12:.2f} TB/s"
    head = f"{first['device']}, Triton {first['triton']}; measured peak {rates}."
    cells = (
        (
            record["case"],
            f"{record['microseconds']:,.1f}",
            f"{record['gb_per_second']:,.0f}",
            f"{record['tflops']:,.1f}",
            _percent(record["share_of_peak"]),
            f"{record['ratio']:.2f} ({record['compared_with']})" if record["ratio"] else "",
        )
        for record in records
    )
    header = ("kernel", "µs", "GB/s", "TFLOP/s", "of the peak", "another way's time over it")
    return "\n".join(["## On a GPU: kernels", "", head, "", *_table(header, cells)]) + "\n"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
