"""The output of `trunkline.logs`, and the spans of `trunkline.tracing`."""

from __future__ import annotations

import io
import json
import logging
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator

from trunkline import logs
from trunkline.logs import LogFormat, LogLevel


class Log:
    """What a process has logged."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of a log in JSON; each line must be one."""
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def log_to(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Log]]:
    """Sets logging up as a process does, and gives it back as it was."""
    root = logging.getLogger()
    before = (root.level, sys.excepthook, threading.excepthook)
    levels = {name: logging.getLogger(name).level for name in logs.QUIET_LIBRARIES}

    def start(
        format_: LogFormat = LogFormat.JSON, level: LogLevel = LogLevel.INFO, **options: Any
    ) -> Log:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        root.handlers[:] = []  # pytest's own, which fail where a record is malformed
        logs.configure("test", level, format_, **options)
        return Log(stream)

    yield start
    logging.captureWarnings(False)
    for handler in list(root.handlers):
        if handler.get_name() == logs.HANDLER_NAME:
            root.removeHandler(handler)
    root.level, sys.excepthook, threading.excepthook = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


class OwnRandomIds(IdGenerator):
    """Ids of spans that leave the module-wide random generator as it is.

    A provider stays for the rest of the process, and threads of later tests start spans too:
    Hypothesis takes a draw from that generator, by whichever thread, for a fault of the test.
    """

    def __init__(self) -> None:
        self._random = random.Random()

    def generate_span_id(self) -> int:
        return self._random.getrandbits(64) or 1

    def generate_trace_id(self) -> int:
        return self._random.getrandbits(128) or 1


@pytest.fixture(scope="session")
def recording() -> Iterator[InMemorySpanExporter]:
    """Where this process's spans go; there can be only one such place."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(id_generator=OwnRandomIds())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
def spans(recording: InMemorySpanExporter) -> InMemorySpanExporter:
    recording.clear()
    return recording
