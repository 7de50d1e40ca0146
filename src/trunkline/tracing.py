"""Traces with OpenTelemetry, sent only where the environment says so.

Spans are made with OpenTelemetry's API, which does nothing until `configure` finds
`OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_TRACES_EXPORTER` and gives it an SDK. Sampling, headers,
time-outs and the service's name follow OpenTelemetry's own variables.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from opentelemetry import trace

import trunkline

logger = logging.getLogger(__name__)

# All of this project's spans; usable at once, whether or not anything is configured later.
tracer = trace.get_tracer("trunkline", trunkline.__version__)

EXPORTERS = ("otlp", "console")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def configure(process: str) -> bool:
    """Send the spans of this process to where the environment says.

    What is wrong with that is a warning in the log and no traces: the program works without.

    Args:
        process: what this process is, for example `server`; part of the service's name.

    Returns:
        Whether spans are sent.
    """
    wanted = wanted_exporters(os.environ)
    if not wanted:
        return False
    unknown = [name for name in wanted if name not in EXPORTERS]
    protocol = next((os.environ[name] for name in PROTOCOLS if os.environ.get(name)), None)
    if unknown or ("otlp" in wanted and protocol not in {None, "http/protobuf"}):
        logger.warning(
            "no traces are sent: OTEL_TRACES_EXPORTER is %s and the protocol is %s; allowed are "
            "otlp and console, and http/protobuf",
            ",".join(wanted),
            protocol or "not given",
        )
        return False
    try:
        from trunkline.trace_export import start_export  # noqa: PLC0415  # the extra `otel`
    except ImportError as error:
        logger.warning(
            "no traces are sent: the environment asks for them, but %s is not installed; install "
            "`trunkline[otel]`",
            error.name,
        )
        return False
    start_export(os.environ.get("OTEL_SERVICE_NAME") or f"trunkline-{process}", wanted)
    logger.info("traces are sent with %s", " and ".join(wanted))
    return True


def wanted_exporters(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Which exporters an environment asks for; none when traces are off."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    given = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if not given:
        return ("otlp",) if any(environment.get(name) for name in ENDPOINTS) else ()
    names = [name.strip() for name in given.split(",")]
    return tuple(name for name in names if name not in {"", "none"})
