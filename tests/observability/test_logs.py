"""Records, and what they are about."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from anyio import run
from anyio.to_thread import run_sync

from trunkline.logs import LogFormat, LogLevel, LogSettings, add_log_fields, log_fields
from trunkline.options import ConfigError, resolve

logger = logging.getLogger("trunkline.somewhere")


def test_a_record_in_json(log_to: Callable[..., Any]) -> None:
    log = log_to()
    before = datetime.now(UTC) - timedelta(milliseconds=1)  # it may be rounded
    logger.warning("%d lines in %s", 3, "grün", extra={"status": 200})
    (record,) = log.records
    assert before <= datetime.fromisoformat(record.pop("time")) <= datetime.now(UTC)
    assert record == {
        "level": "WARNING",
        "process": "test",
        "logger": "trunkline.somewhere",
        "message": "3 lines in grün",
        "status": 200,
    }


def test_a_record_in_text(log_to: Callable[..., Any]) -> None:
    log = log_to(LogFormat.TEXT)
    with log_fields(batch_id="batch_1", request_id="req_1"):
        logger.info("batch %s: claimed", "batch_1")
    assert log.text.endswith(" test INFO batch batch_1: claimed request_id=req_1\n")
    assert "batch_id=" not in log.text  # the message says it


def test_a_client_cannot_write_records_of_its_own(log_to: Callable[..., Any]) -> None:
    log = log_to(LogFormat.TEXT)
    with log_fields(path="x\r\ny"):
        logger.info("GET %s", "/a\n2026-01-01 00:00:00,000 test INFO all is well")
    assert log.text.count("\n") == 1


def test_an_exception_in_json_is_one_record(log_to: Callable[..., Any]) -> None:
    log = log_to()
    try:
        raise ValueError("too warm")
    except ValueError:
        logger.exception("failed")
    (record,) = log.records
    assert record["message"] == "failed"
    assert record["exception"].startswith("Traceback")
    assert record["exception"].endswith("ValueError: too warm")


def test_levels(log_to: Callable[..., Any]) -> None:
    log = log_to(level=LogLevel.WARNING)
    logger.info("not this")
    logger.error("but this")
    assert [record["message"] for record in log.records] == ["but this"]


def test_libraries_that_talk_about_every_connection_are_quiet(log_to: Callable[..., Any]) -> None:
    log = log_to(level=LogLevel.DEBUG)
    logging.getLogger("httpx").info("HTTP Request: POST https://hooks.example.com/T0/B0/s3cret")
    logging.getLogger("httpcore.http11").debug("send_request_headers")
    assert log.text == ""


def test_fields_nest_and_end(log_to: Callable[..., Any]) -> None:
    log = log_to()
    with log_fields(batch_id="batch_1"):
        with log_fields(request_id="req_1"):
            add_log_fields(project_id="proj_1")
            logger.info("inside")
        logger.info("between")
    add_log_fields(project_id="proj_2")  # of nothing
    logger.info("outside")
    names = ("batch_id", "request_id", "project_id")
    assert [[record.get(name) for name in names] for record in log.records] == [
        ["batch_1", "req_1", "proj_1"],
        ["batch_1", None, None],
        [None, None, None],
    ]


def test_fields_that_are_found_in_another_thread_count_too(log_to: Callable[..., Any]) -> None:
    """A web framework runs each step of a request in whatever thread is free."""
    log = log_to()

    async def handle() -> None:
        with log_fields(request_id="req_1"):
            await run_sync(lambda: add_log_fields(project_id="proj_1"))
            await run_sync(lambda: logger.info("hello"))

    run(handle)
    (record,) = log.records
    assert (record["request_id"], record["project_id"]) == ("req_1", "proj_1")


def test_a_field_cannot_hide_what_the_record_says(log_to: Callable[..., Any]) -> None:
    log = log_to()
    with log_fields(message="bye", level="DEBUG", filename="in.jsonl", name="x"):
        logger.info("hello")
    (record,) = log.records
    assert (record["message"], record["level"]) == ("hello", "INFO")
    assert (record["logger"], record["filename"]) == ("trunkline.somewhere", "in.jsonl")


def test_configuring_again_replaces(log_to: Callable[..., Any]) -> None:
    first, second = log_to(), log_to()
    logger.info("hello")
    assert first.text == ""
    assert len(second.records) == 1


def test_uncaught_exceptions_are_records(log_to: Callable[..., Any]) -> None:
    log = log_to()

    def fail() -> None:
        raise ValueError("too warm")

    thread = threading.Thread(target=fail, name="oven")
    thread.start()
    thread.join()
    try:
        fail()
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    assert [(r["level"], r["message"]) for r in log.records] == [
        ("CRITICAL", "uncaught exception in the thread oven"),
        ("CRITICAL", "uncaught exception"),
    ]
    assert all("ValueError: too warm" in record["exception"] for record in log.records)


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(LogSettings) == LogSettings(log_format=LogFormat.TEXT, log_level=LogLevel.INFO)
    monkeypatch.setenv("TRUNKLINE_LOG_FORMAT", "json")
    monkeypatch.setenv("TRUNKLINE_LOG_LEVEL", "debug")
    assert resolve(LogSettings) == LogSettings(log_format=LogFormat.JSON, log_level=LogLevel.DEBUG)
    monkeypatch.setenv("TRUNKLINE_LOG_FORMAT", "xml")
    with pytest.raises(ConfigError, match=r"TRUNKLINE_LOG_FORMAT is 'xml': .*'text' or 'json'"):
        resolve(LogSettings)
