"""How a process logs: text for people or JSON for machines; what about, and without secrets.

Records go to stderr. Those of a request or a batch carry its id, wherever they are written:

    with log_fields(batch_id=batch_id):
        ...                                    # every record in here has batch_id
        add_log_fields(project_id=project_id)  # and from here on project_id too
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from enum import StrEnum
from types import TracebackType
from typing import Any

from opentelemetry.trace import format_span_id, format_trace_id, get_current_span
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from pythonjsonlogger.json import JsonFormatter

from trunkline.redaction import Redactor, secrets_of

# Libraries that tell of every connection they make, some of them with all headers.
QUIET_LIBRARIES = ("alembic", "boto3", "botocore", "httpcore", "httpx", "s3transfer", "urllib3")

HANDLER_NAME = "trunkline"


class LogFormat(StrEnum):
    """What a record looks like."""

    TEXT = "text"  # one line
    JSON = "json"  # one object on one line


class LogLevel(StrEnum):
    """The least important records that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogSettings(BaseSettings):
    """How server and engine log."""

    model_config = SettingsConfigDict(env_prefix="TRUNKLINE_", frozen=True, extra="ignore")

    log_format: LogFormat = Field(
        LogFormat.TEXT, description="Lines for people, or a JSON object per line."
    )
    log_level: LogLevel = Field(
        LogLevel.INFO, description="The least important records that are written."
    )


# Shared by all that runs on behalf of one request or batch: a context that was copied for another
# thread refers to the same dict.
_fields: ContextVar[dict[str, str] | None] = ContextVar("trunkline_log_fields", default=None)


@contextmanager
def log_fields(**fields: str) -> Iterator[None]:
    """Give all records inside these fields, beside those of the contexts around."""
    token = _fields.set({**(_fields.get() or {}), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


def add_log_fields(**fields: str) -> None:
    """Add to the innermost `log_fields`, for as long as that lasts; without one, do nothing."""
    current = _fields.get()
    if current is not None:
        current.update(fields)


def configure(
    process: str,
    level: LogLevel = LogLevel.INFO,
    format_: LogFormat = LogFormat.TEXT,
    secrets: Iterable[str] = (),
) -> None:
    """Set up all logging of this process; what was set up before is replaced.

    Warnings and uncaught exceptions become records too.

    Args:
        process: what this process is, for example `server`.
        secrets: texts that must not be seen, whatever they look like; beside those that the
            environment tells.
    """
    redactor = Redactor((*secrets, *secrets_of(os.environ)))
    handler = _Handler(sys.stderr)
    handler.set_name(HANDLER_NAME)
    handler.setFormatter(
        _Json(process, redactor) if format_ is LogFormat.JSON else _Text(process, redactor)
    )
    root = logging.getLogger()
    for former in list(root.handlers):
        if former.get_name() == HANDLER_NAME:
            root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


class _Handler(logging.StreamHandler[Any]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the base's name
        """The base class would print the arguments as they are."""
        with suppress(OSError, ValueError):
            self.stream.write(f"the log record of {record.pathname}:{record.lineno} is malformed\n")


class _Text(logging.Formatter):
    """A line for people; the fields at its end, unless the message names them anyway."""

    def __init__(self, process: str, redactor: Redactor) -> None:
        super().__init__(f"%(asctime)s {process} %(levelname)s %(message)s")
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        return self._redactor.text(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the base's name
        fields = _fields.get() or {}
        shown = [
            f"{key}={value}" for key, value in fields.items() if str(value) not in record.message
        ]
        line = " ".join([super().formatMessage(record), *shown])
        # What a client sent must not look like a record of its own.
        return line.replace("\r", "\\r").replace("\n", "\\n")


class _Json(JsonFormatter):
    """An object with `time`, `level`, `process`, `logger`, `message` and whatever is known."""

    def __init__(self, process: str, redactor: Redactor) -> None:
        super().__init__(
            "%(levelname)s %(name)s %(message)s",
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            static_fields={"process": process},
            timestamp="time",
            json_ensure_ascii=False,
        )
        self._redactor = redactor

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        super().add_fields(log_data, record, message_dict)
        log_data["time"] = log_data["time"].isoformat(timespec="milliseconds")
        for key, value in (_fields.get() or {}).items():
            log_data.setdefault(key, value)
        span = get_current_span().get_span_context()
        if span.is_valid:
            log_data["trace_id"] = format_trace_id(span.trace_id)
            log_data["span_id"] = format_span_id(span.span_id)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        redacted: dict[str, Any] = self._redactor.value(log_data)
        return redacted


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    logging.getLogger(__name__).critical("uncaught exception", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if issubclass(args.exc_type, SystemExit):
        return
    error = args.exc_value or args.exc_type()
    name = args.thread.name if args.thread is not None else "unknown"
    logging.getLogger(__name__).critical(
        "uncaught exception in the thread %s",
        name,
        exc_info=(args.exc_type, error, args.exc_traceback),
    )
