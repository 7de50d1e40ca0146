"""A live server, as those see it who watch it: its metrics page and its log."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import wait_for
from trunkline.server.metric_table import METRICS

KEY = "tl-Zk3v9_QmB7-x1Lr8TtYw2NcS5dHaEuGf0OiPjKqXoM4"


def value(server: Any, name: str, **labels: str) -> float:
    """The value of a metric's sample; 0 if it is not there."""
    page = server.http.get("/metrics").text
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return 0.0


def test_the_page_holds_only_what_is_documented(server: Any, engine: Any) -> None:
    batch = server.create(jsonl(engine.lines(2)))
    engine.complete(engine.claim())
    server.wait_for_end(batch.id)
    page = server.http.get("/metrics").text
    names = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    known = {spec.name for spec in METRICS}
    assert names <= known
    assert {"trunkline_batches", "trunkline_http_requests_total", "trunkline_store_up"} <= names
    for private in (batch.id, batch.input_file_id, "proj_default", "request-0"):
        assert private not in page


def check_counts(server: Any, model: str) -> None:
    """A batch of this model is the only one, and has gone through with one failure."""
    jobs = "trunkline_job_duration_seconds_count"
    assert value(server, jobs, kind="validate", result="in_progress") == 1
    # The batch has ended a little earlier.
    wait_for(lambda: value(server, jobs, kind="finalize", result="completed") == 1)
    # No store was read before, so that no older figures are shown.
    assert value(server, "trunkline_lines_total", model=model, outcome="failed") == 1
    route = {"route": "/v1/batches", "method": "POST"}
    assert value(server, "trunkline_http_requests_total", status_class="2xx", **route) == 1


@pytest.mark.parametrize("format_", ["json", pytest.param("text", marks=pytest.mark.slow)])
def test_a_batch_on_its_way(
    make_server: Callable[..., Any], make_engine: Any, format_: str
) -> None:
    """It is counted, and it is logged; what is secret is not."""
    server = make_server(log_format=format_)
    engine = make_engine(server)
    batch = server.create(jsonl(engine.lines(3)))
    engine.complete(engine.claim(), failing={"request-1"})
    server.wait_for_end(batch.id)
    check_counts(server, engine.model)
    headers = {"authorization": f"Bearer {KEY}"}
    reply = server.http.get(f"/v1/batches/{batch.id}", headers=headers)
    assert reply.status_code == 200
    server.http.get("/healthz")
    server.stop()
    assert KEY not in server.log
    assert "/healthz" not in server.log
    if format_ == "text":
        request_id = f"request_id={reply.headers['x-request-id']}"
        (line,) = [line for line in server.log.splitlines() if request_id in line]
        assert re.search(r"server INFO GET /v1/batches/\{batch_id\}: 200 in \d+\.\d+ s, ", line)
        assert f"batch_id={batch.id}" in line
        return
    records = [json.loads(line) for line in server.log.splitlines()]
    assert {record["process"] for record in records} == {"server"}
    (seen,) = [r for r in records if r.get("request_id") == reply.headers["x-request-id"]]
    assert (seen["route"], seen["status"]) == ("/v1/batches/{batch_id}", 200)
    assert (seen["batch_id"], seen["project_id"]) == (batch.id, "proj_default")
    about = [r for r in records if r.get("batch_id") == batch.id and "request_id" not in r]
    assert len(about) >= 2  # validated, finalized


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
