"""What `trunkline simulate` prints."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from trunkline.engine.cli import app
from trunkline.engine.simulation.hardware import HARDWARE, MODEL_SHAPES
from trunkline.engine.simulation.simulate import ALL_SETTINGS
from trunkline.engine.simulation.workloads import WORKLOADS

WORKLOAD = ("simulate", "--workload", "w1-16", "--hardware", "H200", "--requests", "48")


def test_the_table_shows_every_figure_whole_on_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, [*WORKLOAD, "--compare"])
    assert result.exit_code == 0, result.output
    title, *lines = [line for line in result.output.splitlines() if line.strip()]
    assert title.strip() == "48 requests, llama-3.1-8b on h200 (measured rates)"
    assert "…" not in result.output
    heading = " ".join(lines[:2]).split()
    names = "setting seconds steps peak KV saved idle of floor preempted"
    assert sorted(heading) == sorted(names.split())
    assert len(lines) == 3 + len(ALL_SETTINGS)  # the heading, a rule, the settings


def test_json_has_a_line_for_each_setting() -> None:
    result = CliRunner().invoke(app, [*WORKLOAD, "--compare", "--json"])
    assert result.exit_code == 0, result.output
    planned, *_, without_sharing = map(json.loads, result.output.splitlines())
    assert planned["requests"] == without_sharing["requests"] == 48
    assert planned["setting"] == "planned+planned"
    # Three groups of 16 share 2,000 of 2,200 prompt tokens.
    assert planned["saved_share"] == pytest.approx(2000 * 45 / (2200 * 48))
    assert without_sharing["saved_share"] == 0


@pytest.mark.parametrize("option", ["--workload", "--hardware", "--model-shape"])
def test_what_is_not_known_is_said_with_what_is(option: str) -> None:
    result = CliRunner().invoke(app, [*WORKLOAD, option, "toaster"])
    known = {"--workload": WORKLOADS, "--hardware": HARDWARE, "--model-shape": MODEL_SHAPES}[option]
    assert result.exit_code == 2
    assert f"{option} is 'toaster'; allowed are {', '.join(known)}" in result.output
