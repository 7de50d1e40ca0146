"""Metrics, their documentation and the dashboard agree."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trunkline.server.metric_table import METRICS, Kind

NAME = re.compile(r"trunkline_\w+")
ROW = re.compile(r"^\| `(trunkline_\w+)` \|", re.MULTILINE)
# The names of labels in a PromQL expression.
GROUPING = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"\{([^}]*)\}")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")

# Prometheus gives these to every target; a metric's own would be renamed.
OF_PROMETHEUS = frozenset({"job", "instance"})
# What the table promises not to tell.
PRIVATE = frozenset({"project", "project_id", "key", "api_key", "file", "file_id", "batch_id"})
LONG_FORMS = ("_ms", "_milliseconds", "_minutes", "_hours", "_kb", "_mb", "_gb", "_percent")


def _samples() -> set[str]:
    """The names under which values are found."""
    names = {spec.name for spec in METRICS}
    for spec in METRICS:
        if spec.kind is Kind.HISTOGRAM:
            names |= {f"{spec.name}_{part}" for part in ("bucket", "count", "sum")}
    return names


def _targets(dashboard: Any) -> Iterator[tuple[str, str]]:
    """Expression and legend of each query."""
    if isinstance(dashboard, dict):
        if "expr" in dashboard:
            yield dashboard["expr"], dashboard.get("legendFormat", "")
        for value in dashboard.values():
            yield from _targets(value)
    elif isinstance(dashboard, list):
        for value in dashboard:
            yield from _targets(value)


@pytest.fixture(scope="module")
def dashboard(root: Path) -> Any:
    return json.loads((root / "docs" / "grafana" / "trunkline.json").read_text(encoding="utf-8"))


def test_metrics_page_is_current(root: Path) -> None:
    generate = runpy.run_path(str(root / "docs" / "generate_metrics.py"))
    committed = (root / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert committed == generate["metrics_page"]()


def test_documented_metrics_are_those_that_exist(root: Path) -> None:
    page = (root / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = ROW.findall(page)
    assert sorted(documented) == sorted(spec.name for spec in METRICS)
    assert set(NAME.findall(page)) <= _samples()


def test_names_follow_the_conventions() -> None:
    for spec in METRICS:
        assert re.fullmatch(r"trunkline_[a-z]+(_[a-z]+)*", spec.name)
        assert (spec.kind is Kind.COUNTER) == spec.name.endswith("_total"), spec.name
        assert not spec.name.removesuffix("_total").endswith(LONG_FORMS), spec.name
        assert spec.help.endswith("."), spec.name
        assert bool(spec.buckets) == (spec.kind is Kind.HISTOGRAM), spec.name
        assert list(spec.buckets) == sorted(spec.buckets), spec.name
        if spec.kind is Kind.HISTOGRAM:
            assert spec.name.endswith("_seconds")


def test_labels_tell_nothing_private_and_clash_with_nothing() -> None:
    labels = {label for spec in METRICS for label in spec.labels}
    assert not labels & (OF_PROMETHEUS | PRIVATE)


def test_dashboard_asks_only_for_what_exists(dashboard: Any) -> None:
    samples = _samples()
    queries = list(_targets(dashboard))
    assert len(queries) > 20
    unknown = {name for expr, _ in queries for name in NAME.findall(expr) if name not in samples}
    assert unknown == set()


def test_dashboard_shows_every_metric(dashboard: Any) -> None:
    shown = {name for expr, _ in _targets(dashboard) for name in NAME.findall(expr)}
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown} | shown
    assert {spec.name for spec in METRICS} <= shown


def test_dashboard_uses_only_labels_that_its_metrics_have(dashboard: Any) -> None:
    of_metric = {spec.name: set(spec.labels) for spec in METRICS}
    for expr, legend in _targets(dashboard):
        names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in NAME.findall(expr)}
        known = set.intersection(*(of_metric[name] for name in names)) | OF_PROMETHEUS | {"le"}
        used = {each.strip() for group in GROUPING.findall(expr) for each in group.split(",")}
        used |= {each for selector in SELECTOR.findall(expr) for each in MATCHER.findall(selector)}
        used |= set(LEGEND.findall(legend))
        assert used <= known, expr


def test_dashboard_can_be_provisioned(dashboard: Any) -> None:
    (variable,) = dashboard["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == (
        *("datasource", "datasource"),
        "prometheus",
    )
    assert dashboard["uid"] == "trunkline"
    panels = dashboard["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    for panel in panels:
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert refs
        assert len(set(refs)) == len(refs)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert max(x for x, _ in cells) < 24
