"""When traces are sent, and what happens when they cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from trunkline import tracing
from trunkline.tracing import wanted_exporters

# A process of its own, for a process has one place for its spans.
PROGRAM = """
import logging, sys
from trunkline import tracing
logging.basicConfig(level=logging.INFO)
is_sent = tracing.configure("test")
with tracing.tracer.start_as_current_span("work"):
    pass
print(is_sent, "opentelemetry.sdk" in sys.modules)
"""


def run_program(program: str = PROGRAM, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, "PYTHONSAFEPATH": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


class Collector:
    """Takes spans as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.received = ExportTraceServiceRequest()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.paths.append(self.path)
                collector.received.MergeFromString(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ()),
        ({"OTEL_SERVICE_NAME": "x"}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "TRUE"}, ()),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, ("otlp", "console")),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, ("zipkin",)),
    ],
)
def test_the_environment_decides(environment: dict[str, str], expected: tuple[str, ...]) -> None:
    assert wanted_exporters(environment) == expected


def test_without_being_asked_for_the_sdk_is_not_even_loaded() -> None:
    result = run_program()
    assert result.stdout == "False False\n"
    assert result.stderr == ""


def test_spans_reach_the_collector_before_the_process_ends(collector: Collector) -> None:
    result = run_program(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert result.stdout == "True True\n"
    assert collector.paths == ["/v1/traces"]
    (resource_spans,) = collector.received.resource_spans
    resource = {each.key: each.value.string_value for each in resource_spans.resource.attributes}
    assert resource["service.name"] == "trunkline-test"
    assert [span.name for span in resource_spans.scope_spans[0].spans] == ["work"]


def test_spans_on_the_console() -> None:
    result = run_program(OTEL_TRACES_EXPORTER="console", OTEL_SERVICE_NAME="mine")
    assert result.stdout == "True True\n"
    span = json.loads(result.stderr[result.stderr.index("{") :])
    assert span["name"] == "work"
    assert span["resource"]["attributes"]["service.name"] == "mine"


def test_a_collector_that_is_gone_does_not_hold_the_process_up() -> None:
    result = run_program(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_EXPORTER_OTLP_TIMEOUT="1"
    )
    assert result.stdout == "True True\n"


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        },
    ],
)
def test_what_is_not_supported_is_said(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, log_to: Callable[..., Any]
) -> None:
    log = log_to()
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    assert tracing.configure("test") is False
    (record,) = log.records
    assert record["level"] == "WARNING"
    assert "allowed are otlp and console, and http/protobuf" in record["message"]


def test_an_sdk_that_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, log_to: Callable[..., Any]
) -> None:
    log = log_to()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delitem(sys.modules, "trunkline.trace_export", raising=False)
    missing = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, missing, None)
    assert tracing.configure("test") is False
    (record,) = log.records
    assert record["level"] == "WARNING"
    assert f"{missing} is not installed; install `trunkline[otel]`" in record["message"]
