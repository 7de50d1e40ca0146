"""Sends spans away. The only module that needs OpenTelemetry's SDK, and so the extra `otel`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

import trunkline


def start_export(service_name: str, exporters: Iterable[str]) -> None:
    """Send all spans of this process with each of `exporters`, `otlp` or `console`.

    What is left is sent when the process ends.
    """
    resource = Resource.create(
        {"service.name": service_name, "service.version": trunkline.__version__}
    )
    provider = TracerProvider(resource=resource)
    for name in exporters:
        provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
    trace.set_tracer_provider(provider)


def _exporter(name: str) -> SpanExporter:
    # Standard output may be data; the log is on the other stream.
    return OTLPSpanExporter() if name == "otlp" else ConsoleSpanExporter(out=sys.stderr)
