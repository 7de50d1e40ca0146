"""What is seen of a request: its line in the log and its span."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, format_trace_id

from trunkline.logs import LogFormat, add_log_fields
from trunkline.server.job_observation import LOST, observed_job, webhook_span
from trunkline.server.metrics import Metrics
from trunkline.server.observation import HTTP_TELEMETRY, ObservationMiddleware
from trunkline.server.request_id import RequestIdMiddleware
from trunkline.server.routes import metrics as metrics_route
from trunkline.server.store_collector import StoreCollector
from trunkline.store.database import Database
from trunkline.store.engines import Engines
from trunkline.store.records import Claim
from trunkline.store.states import BatchStatus
from trunkline.store.totals import Totals

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
KEY = "tl-Zk3v9_QmB7-x1Lr8TtYw2NcS5dHaEuGf0OiPjKqXoM4"

logger = logging.getLogger("trunkline.somewhere")


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[Metrics]:
    database = Database.open(f"sqlite:///{tmp_path / 'empty.db'}")
    yield Metrics(StoreCollector(Totals(database), Engines(database), 30))
    database.close()


@pytest.fixture
def client(metrics: Metrics) -> Iterator[TestClient]:
    """An application that is watched as the server is."""
    router = APIRouter(prefix="/v1/batches")

    @router.post("/{batch_id}")
    async def echo(batch_id: str, request: Request) -> Response:
        add_log_fields(project_id="proj_1", batch_id=batch_id)
        logger.info("working")
        return Response(await request.body() * 2)

    @router.get("/{batch_id}/fail")
    def fail(batch_id: str) -> None:
        raise RuntimeError(f"unforeseen {KEY}")

    app = FastAPI(redirect_slashes=False, telemetry=HTTP_TELEMETRY)
    app.state.trunkline = SimpleNamespace(metrics=metrics)
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(ObservationMiddleware, metrics=metrics)
    app.include_router(router)
    app.include_router(metrics_route.router)
    with TestClient(app) as client:
        yield client


def claim(num_total: int = 0) -> Claim:
    return Claim(
        batch_id="batch_1",
        project_id="proj_1",
        token="t",
        holder="h",
        endpoint="/v1/completions",
        input_file_id="file-1",
        model=None,
        status=BatchStatus.VALIDATING,
        expires_at=0,
        num_total=num_total,
        priority=0,
    )


def of_requests(log: Any) -> list[dict[str, Any]]:
    return [record for record in log.records if record["logger"] == "trunkline.access"]


def test_every_request_has_a_line(client: TestClient, log_to: Callable[..., Any]) -> None:
    log = log_to()
    started = time.monotonic()
    reply = client.post("/v1/batches/batch_1?x=1", content=b"12345")
    seconds = time.monotonic() - started
    (record,) = of_requests(log)
    expected = {
        "level": "INFO",
        "method": "POST",
        "route": "/v1/batches/{batch_id}",
        "status": 200,
        "bytes_in": 5,
        "bytes_out": 10,
        "request_id": reply.headers["x-request-id"],
        "project_id": "proj_1",
        "batch_id": "batch_1",
    }
    assert record.items() >= expected.items()
    assert 0 < record["duration_seconds"] <= seconds + 0.001  # it is rounded


def test_all_records_of_a_request_carry_its_id(
    client: TestClient, log_to: Callable[..., Any]
) -> None:
    log = log_to()
    first = client.post("/v1/batches/batch_1").headers["x-request-id"]
    second = client.get("/v1/batches/batch_1/fail").headers["x-request-id"]
    assert first != second
    ids = [record["request_id"] for record in log.records if "trunkline" in record["logger"]]
    assert ids == [first, first, second, second]
    (failed,) = [record for record in log.records if record["level"] == "ERROR"]
    assert "RuntimeError: unforeseen tl-***" in failed["exception"]


def test_probes_have_no_line(client: TestClient, log_to: Callable[..., Any]) -> None:
    log = log_to()
    for path in ("/healthz", "/readyz", "/metrics", "/elsewhere"):
        client.get(path)
    assert [record["route"] for record in of_requests(log)] == ["unmatched"]


def test_nothing_that_a_client_sends_as_a_secret_is_logged(
    client: TestClient, log_to: Callable[..., Any]
) -> None:
    for format_ in LogFormat:
        log = log_to(format_)
        headers = {"authorization": f"Bearer {KEY}", "cookie": f"session={KEY}"}
        client.post(f"/v1/batches/batch_1?key={KEY}", headers=headers)
        client.post(f"/v1/batches/{KEY}", headers=headers, content=KEY)
        client.get("/v1/batches/batch_1/fail", headers=headers)
        client.get(f"/{KEY}", headers=headers)
        assert log.text.count("/v1/batches/{batch_id}") >= 3
        assert KEY not in log.text


def test_a_request_is_a_span_of_its_clients_trace(
    client: TestClient, spans: InMemorySpanExporter, log_to: Callable[..., Any]
) -> None:
    log = log_to()
    traceparent = f"00-{TRACE_ID}-{PARENT_ID}-01"
    reply = client.post("/v1/batches/batch_1", headers={"traceparent": traceparent})
    (span,) = spans.get_finished_spans()
    assert span.name == "POST /v1/batches/{batch_id}"
    assert span.context is not None
    assert format_trace_id(span.context.trace_id) == TRACE_ID
    assert span.parent is not None
    assert span.parent.span_id == int(PARENT_ID, 16)
    assert span.attributes is not None
    assert span.attributes["http.route"] == "/v1/batches/{batch_id}"
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["trunkline.request_id"] == reply.headers["x-request-id"]
    assert {record["trace_id"] for record in log.records if "request_id" in record} == {TRACE_ID}


def test_an_unforeseen_error_marks_the_span(
    client: TestClient, spans: InMemorySpanExporter
) -> None:
    client.get("/v1/batches/batch_1/fail", headers={"authorization": f"Bearer {KEY}"})
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 500
    assert KEY not in span.to_json()


def test_probes_are_no_spans(client: TestClient, spans: InMemorySpanExporter) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        client.get(path)
    assert spans.get_finished_spans() == ()


def test_a_job_is_seen_everywhere(
    metrics: Metrics, spans: InMemorySpanExporter, log_to: Callable[..., Any]
) -> None:
    log = log_to()
    with observed_job(claim(), metrics) as job:
        logger.info("validating")
        job.result = BatchStatus.IN_PROGRESS
    with observed_job(claim(num_total=3), metrics) as job:
        job.result = LOST
    names = [(span.name, dict(span.attributes or {})) for span in spans.get_finished_spans()]
    assert names == [
        (
            f"batch {kind}",
            {"trunkline.batch_id": "batch_1", "trunkline.job": kind, "trunkline.result": result},
        )
        for kind, result in (("validate", "in_progress"), ("finalize", "lost"))
    ]
    (record,) = log.records
    assert (record["batch_id"], record["project_id"]) == ("batch_1", "proj_1")
    page = metrics.page().decode()
    count = "trunkline_job_duration_seconds_count"
    assert f'{count}{{kind="validate",result="in_progress"}} 1.0' in page
    assert f'{count}{{kind="finalize",result="lost"}} 1.0' in page


def test_jobs_that_fail_count_and_those_that_are_interrupted_do_not(
    metrics: Metrics, spans: InMemorySpanExporter
) -> None:
    with observed_job(claim(), metrics):
        pass  # the server stops
    with pytest.raises(RuntimeError), observed_job(claim(), metrics):
        raise RuntimeError("disk full")
    assert [span.status.status_code for span in spans.get_finished_spans()] == [
        StatusCode.UNSET,
        StatusCode.ERROR,
    ]
    page = metrics.page().decode()
    assert 'kind="validate",result="error"} 1.0' in page
    assert page.count("trunkline_job_duration_seconds_count{") == 1


def test_a_delivery_is_a_span_that_tells_the_host_alone(spans: InMemorySpanExporter) -> None:
    with webhook_span("batch.completed", "https://hooks.example.com:8443/T0/s3cret?k=v", 2) as span:
        span.set_attribute("http.response.status_code", 204)
    (finished,) = spans.get_finished_spans()
    assert finished.attributes == {
        "http.request.method": "POST",
        "server.address": "hooks.example.com",
        "trunkline.event_type": "batch.completed",
        "http.request.resend_count": 2,
        "http.response.status_code": 204,
    }
    assert "s3cret" not in finished.to_json()
