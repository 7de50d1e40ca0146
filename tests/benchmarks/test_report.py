"""The page of benchmarks says what the rows say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from harness.markdown import END, START, render, replace_results
from harness.rows import RESULTS, Row, read_rows, write_rows

ROW = Row(
    part="cpu",
    workload="W1",
    size="2000/200/100 in groups of 16; 64 requests",
    engine="trunkline fcfs+lru",
    version="0.1.0",
    model="SmolLM2-135M-Instruct",
    dtype="bfloat16",
    device="a processor, 2 threads",
    commit="abc1234",
    seconds=[3.0, 4.0, 5.0],
    ratios=[1.5, 2.0, 1.25],
    prompt_tokens=1000,
    output_tokens=100,
    computed_prompt_tokens=400,
    peak_kv_tokens=12_345,
    floor_s=1.0,
)
MISSING = replace(ROW, engine="llama_cpp", seconds=[], ratios=[], not_measured="no compiler")


def test_committed_page_is_what_the_rows_give(root: Path) -> None:
    page = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert page == replace_results(page, RESULTS)


def test_rows_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [ROW, MISSING])
    assert read_rows(path) == [ROW, MISSING]


def test_derived_figures() -> None:
    assert ROW.median_seconds == 4.0
    assert ROW.ratio == 1.5
    assert ROW.logical_tokens_per_second == 275.0
    assert ROW.computed_tokens_per_second == 125.0
    assert ROW.saved_share == pytest.approx(0.6)
    assert ROW.share_of_floor == 0.25


def test_tables_have_ratios_and_what_is_missing(tmp_path: Path) -> None:
    write_rows(tmp_path / "cpu.jsonl", [ROW, MISSING])
    made = render(tmp_path)
    cells = "| W1 | trunkline fcfs+lru 0.1.0 | 1.50 | 1.25 to 2.00 | 60% | 12,345 tokens | 25% |"
    assert cells in made
    assert "Not measured: llama_cpp on W1: no compiler." in made
    assert "Nothing has been measured on a GPU." in made
    # Seconds of a shared CPU are no result.
    assert "4.0" not in made


def test_gpu_rows_are_shown_when_there_are_some(tmp_path: Path) -> None:
    write_rows(tmp_path / "gpu-end-to-end.jsonl", [replace(ROW, model="Llama-3.1-8B")])
    made = render(tmp_path)
    assert "Nothing has been measured on a GPU." not in made
    assert "Llama-3.1-8B in bfloat16" in made


@pytest.mark.parametrize("document", ["no markers", f"{START}\n", f"{START}{END}{START}{END}"])
def test_document_without_markers_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="needs one"):
        replace_results(document, RESULTS)
