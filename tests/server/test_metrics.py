"""The metrics page: what the store holds, what engines say, what requests did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Response
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert
from starlette.requests import Request

import trunkline
from tests.server.stores import every_database
from trunkline.server.metric_table import METRICS
from trunkline.server.metrics import Metrics
from trunkline.server.observation import ObservationMiddleware
from trunkline.server.request_id import RequestIdMiddleware
from trunkline.server.routes import metrics as metrics_route
from trunkline.server.store_collector import FORGET_SECONDS, StoreCollector
from trunkline.store.blobs import DiskBlobs
from trunkline.store.database import Database
from trunkline.store.engines import Engines
from trunkline.store.projects import DEFAULT_PROJECT_ID
from trunkline.store.records import EngineRecord
from trunkline.store.schema import (
    batches,
    files,
    webhook_deliveries,
    webhook_endpoints,
)
from trunkline.store.totals import Totals
from trunkline.store.work import Work

NOW = 1_000_000
ALIVE_SECONDS = 30.0
FIGURES = {
    "num_running": 3,
    "num_waiting": 4,
    "kv_pages_in_use": 5,
    "kv_pages": 6,
    "num_steps": 7,
    "num_preemptions": 8,
    "step_seconds": 0.25,
    "num_computed_prompt_tokens": 9,
    "num_cached_prompt_tokens": 10,
    "num_output_tokens": 11,
    "prompt_tokens_per_second": 12.5,
    "output_tokens_per_second": 13.5,
}

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(page: str) -> Values:
    """Sample name and labels -> value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def value(page: str, name: str, **labels: str) -> float | None:
    return parse(page).get((name, tuple(sorted(labels.items()))))


def make_metrics(database: Database) -> Metrics:
    collector = StoreCollector(Totals(database), Engines(database), ALIVE_SECONDS, now=lambda: NOW)
    return Metrics(collector)


def scrape(database: Database) -> str:
    return make_metrics(database).page().decode()


def add_batch(database: Database, number: int, status: str, **columns: Any) -> None:
    with database.write() as connection:
        connection.execute(
            insert(batches).values(
                id=f"batch_{number}",
                project_id=DEFAULT_PROJECT_ID,
                endpoint="/v1/chat/completions",
                input_file_id="file-1",
                completion_window="24h",
                status=status,
                created_at=NOW - 100,
                expires_at=NOW + 100,
                **columns,
            )
        )


def lease(number: int) -> dict[str, Any]:
    return {"lease_holder": "e", "lease_token": f"t{number}", "lease_expires_at": NOW + 60.0}


@pytest.fixture
def app(database: Database) -> Iterator[TestClient]:
    """An application that is watched, with routes of all kinds."""
    router = APIRouter(prefix="/v1/things")

    @router.post("/{thing_id}")
    async def echo(thing_id: str, request: Request) -> Response:
        return Response(await request.body() * 2)

    @router.get("/{thing_id}/fail")
    def fail(thing_id: str) -> None:
        raise RuntimeError("unforeseen")

    made = FastAPI(redirect_slashes=False)
    watched = make_metrics(database)
    made.state.trunkline = SimpleNamespace(metrics=watched)
    made.add_middleware(RequestIdMiddleware)
    made.add_middleware(ObservationMiddleware, metrics=watched)
    made.include_router(router)
    made.include_router(metrics_route.router)
    with TestClient(made) as client:
        yield client


def test_an_empty_store(database: Database) -> None:
    page = scrape(database)
    assert value(page, "trunkline_store_up") == 1
    assert value(page, "trunkline_build_info", version=trunkline.__version__) == 1
    assert value(page, "trunkline_batches", status="in_progress") == 0
    assert value(page, "trunkline_oldest_waiting_batch_age_seconds", status="validating") == 0
    assert value(page, "trunkline_webhook_deliveries", state="pending") == 0


@every_database
def test_batches_and_what_is_queued(database: Database) -> None:
    running = {
        "model": "m",
        "in_progress_at": NOW - 50,
        "num_total": 10,
        "num_completed": 4,
        "num_failed": 1,
        "num_estimated_tokens": 1000,
        "num_prompt_tokens": 400,
        "num_cached_tokens": 100,
        "num_output_tokens": 40,
    }
    add_batch(database, 1, "validating")
    add_batch(database, 2, "validating", **lease(2))
    add_batch(database, 3, "in_progress", **running, **lease(3))
    add_batch(database, 4, "in_progress", **running)
    add_batch(database, 5, "in_progress", **{**running, "in_progress_at": NOW - 60})
    add_batch(database, 6, "in_progress", **running, paused_at=NOW - 90)
    add_batch(database, 7, "in_progress", **{**running, "model": "n"})
    add_batch(database, 8, "completed", **{**running, "num_completed": 9, "num_failed": 1})
    page = scrape(database)

    assert value(page, "trunkline_batches", status="validating") == 2
    assert value(page, "trunkline_batches", status="in_progress") == 5
    assert value(page, "trunkline_batches", status="completed") == 1
    assert value(page, "trunkline_batches", status="failed") == 0
    assert value(page, "trunkline_lines_total", model="m", outcome="completed") == 4 * 4 + 9
    assert value(page, "trunkline_lines_total", model="m", outcome="failed") == 5
    for state, num_batches in (("running", 1), ("waiting", 2), ("paused", 1)):
        queued = value(page, "trunkline_queued_requests", model="m", state=state)
        tokens = value(page, "trunkline_queued_prompt_tokens", model="m", state=state)
        assert (queued, tokens) == (5 * num_batches, 500 * num_batches)
    assert value(page, "trunkline_queued_requests", model="n", state="waiting") == 5
    assert value(page, "trunkline_prompt_tokens_total", model="m") == 5 * 400
    assert value(page, "trunkline_cached_prompt_tokens_total", model="m") == 5 * 100
    assert value(page, "trunkline_output_tokens_total", model="n") == 40

    def oldest(status: str) -> float | None:
        return value(page, "trunkline_oldest_waiting_batch_age_seconds", status=status)

    assert (oldest("validating"), oldest("in_progress"), oldest("finalizing")) == (100, 60, 0)


@every_database
def test_files_and_webhooks(database: Database) -> None:
    with database.write() as connection:
        for number, purpose in enumerate(("batch", "batch", "batch_output")):
            connection.execute(
                insert(files).values(
                    id=f"file-{number}",
                    project_id=DEFAULT_PROJECT_ID,
                    filename="x",
                    purpose=purpose,
                    num_bytes=2**40 + number,
                    sha256="",
                    blob_key="",
                    created_at=NOW,
                )
            )
        connection.execute(
            insert(webhook_endpoints).values(
                id="we_1",
                project_id=DEFAULT_PROJECT_ID,
                name="",
                url="",
                event_types="[]",
                secret="",
                created_at=NOW,
                updated_at=NOW,
            )
        )
        for number, (next_at, done_at) in enumerate(
            [(NOW, None), (NOW, None), (None, NOW), (None, None), (None, None), (None, None)]
        ):
            connection.execute(
                insert(webhook_deliveries).values(
                    event_id=f"evt_{number}",
                    endpoint_id="we_1",
                    event_type="batch.completed",
                    body="{}",
                    created_at=NOW,
                    next_attempt_at=next_at,
                    delivered_at=done_at,
                )
            )
    page = scrape(database)
    assert value(page, "trunkline_files", purpose="batch") == 2
    assert value(page, "trunkline_file_bytes", purpose="batch") == 2 * 2**40 + 1
    assert value(page, "trunkline_files", purpose="batch_output") == 1
    states = [
        value(page, "trunkline_webhook_deliveries", state=state)
        for state in ("pending", "delivered", "failed")
    ]
    assert states == [2, 1, 3]


def test_engines(database: Database, tmp_path: Path) -> None:
    work = Work(database, DiskBlobs(tmp_path / "blobs"))
    for name, heartbeat_at, figures in (
        ("well", NOW - 1, FIGURES),
        ("fresh", NOW - 1, {}),
        ("silent", NOW - ALIVE_SECONDS - 1, FIGURES),
        ("given up", NOW - FORGET_SECONDS - 1, FIGURES),
        ("stopped", NOW - 1, FIGURES),
    ):
        work.register(
            EngineRecord(name, "m", "cpu", "float32", NOW - 9999, heartbeat_at, 2048, figures)
        )
    work.unregister("stopped", NOW)
    page = scrape(database)

    def of(name: str) -> Values:
        return {
            (sample, labels): number
            for (sample, labels), number in parse(page).items()
            if ("engine", name) in labels
        }

    labels = {"engine": "well", "model": "m", "device": "cpu"}
    assert value(page, "trunkline_engine_alive", **labels) == 1
    assert value(page, "trunkline_engine_kv_pages_capacity", **labels) == 6
    assert value(page, "trunkline_engine_steps_total", **labels) == 7
    assert value(page, "trunkline_engine_step_seconds", **labels) == 0.25
    assert sorted(of("well").values()) == sorted([1, *FIGURES.values()])
    assert list(of("fresh").values()) == [1]
    assert list(of("silent").values()) == [0]
    assert of("given up") == of("stopped") == {}


def test_the_page_holds_what_the_table_says(database: Database, tmp_path: Path) -> None:
    """Every metric of the table is there, with its type, its help and its labels; no other is."""
    add_batch(database, 1, "in_progress", model="m", num_total=1)
    with database.write() as connection:
        connection.execute(
            insert(files).values(
                id="file-1",
                project_id=DEFAULT_PROJECT_ID,
                filename="x",
                purpose="batch",
                num_bytes=1,
                sha256="",
                blob_key="",
                created_at=NOW,
            )
        )
    Work(database, DiskBlobs(tmp_path)).register(
        EngineRecord("e", "m", "cpu", "float32", NOW, NOW, 2048, dict(FIGURES))
    )
    metrics = make_metrics(database)
    metrics.count_request("/", "GET", 200, 0.1, 1, 2)
    metrics.count_job("validate", "in_progress", 0.1)
    metrics.count_live("/v1/completions", 200)
    found = {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            family.documentation,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in text_string_to_metric_families(metrics.page().decode())
    }
    assert found == {spec.name: (spec.kind.value, spec.help, set(spec.labels)) for spec in METRICS}


@every_database
def test_a_store_that_cannot_be_read(empty_database_url: str) -> None:
    database = Database.open(empty_database_url)
    metrics = make_metrics(database)
    metrics.count_request("/", "GET", 200, 0.1, 0, 0)
    page = metrics.page().decode()
    database.close()
    assert value(page, "trunkline_store_up") == 0
    assert "trunkline_batches" not in page
    requests = value(
        page, "trunkline_http_requests_total", route="/", method="GET", status_class="2xx"
    )
    assert requests == 1


def test_requests_are_counted_by_route(app: TestClient) -> None:
    for number in range(3):
        app.post(f"/v1/things/{number}", content=b"12345")
    app.delete("/v1/things/1")
    page = app.get("/metrics").text
    route = {"route": "/v1/things/{thing_id}", "method": "POST"}
    assert value(page, "trunkline_http_requests_total", status_class="2xx", **route) == 3
    assert value(page, "trunkline_http_received_bytes_total", **route) == 15
    assert value(page, "trunkline_http_sent_bytes_total", **route) == 30
    assert value(page, "trunkline_http_request_duration_seconds_count", **route) == 3
    assert value(page, "trunkline_http_requests_in_flight") == 1  # the scrape itself
    refused = {**route, "method": "DELETE", "status_class": "4xx"}
    assert value(page, "trunkline_http_requests_total", **refused) == 1


def test_clients_cannot_make_up_series(app: TestClient) -> None:
    for number in range(5):
        app.get(f"/nowhere/{number}")
        app.request(f"BREW{number}", "/")
    page = app.get("/metrics").text
    count = {"status_class": "4xx", "route": "unmatched"}
    assert value(page, "trunkline_http_requests_total", method="GET", **count) == 5
    assert value(page, "trunkline_http_requests_total", method="OTHER", **count) == 5


def test_unforeseen_errors_are_counted_with_their_reply(app: TestClient) -> None:
    reply = app.get("/v1/things/1/fail")
    assert reply.status_code == 500
    page = app.get("/metrics").text
    route = {"route": "/v1/things/{thing_id}/fail", "method": "GET"}
    assert value(page, "trunkline_http_requests_total", status_class="5xx", **route) == 1
    assert value(page, "trunkline_http_sent_bytes_total", **route) == len(reply.content)


def test_the_page_is_plain_text(app: TestClient) -> None:
    reply = app.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert reply.text.startswith("# HELP trunkline_")
    assert "_created" not in reply.text


def test_two_servers_count_for_themselves(database: Database) -> None:
    first, second = make_metrics(database), make_metrics(database)
    first.count_request("/", "GET", 200, 0.1, 0, 0)
    assert b"trunkline_http_requests_total{" in first.page()
    assert b"trunkline_http_requests_total{" not in second.page()
