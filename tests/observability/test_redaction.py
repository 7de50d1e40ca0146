"""Attempts to get a secret into the log."""

from __future__ import annotations

import json
import logging
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from trunkline.logs import LogFormat, log_fields
from trunkline.redaction import MASK, Redactor, secrets_of

KEY = "tl-Zk3v9_QmB7-x1Lr8TtYw2NcS5dHaEuGf0OiPjKqXoM4"
WEBHOOK = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw+/A="
PASSWORD = "corr3ct-horse,battery"

logger = logging.getLogger("leak")

LEAKS = [
    (f"Authorization: Bearer {KEY}", KEY),
    ("authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA=="),
    ("AUTHORIZATION=opaque-9", "opaque-9"),
    (str({"authorization": "Bearer other-token-123"}), "other-token-123"),
    (str([(b"authorization", b"Bearer other-token-123")]), "other-token-123"),
    (json.dumps({"Proxy-Authorization": "Basic abc="}), "abc="),
    (json.dumps(json.dumps({"authorization": "Bearer other-token-123"})), "other-token-123"),
    ("got bearer other-token-123 instead", "other-token-123"),
    (f"key {KEY} was refused", KEY),
    (f"https://example.com/?key={KEY}&limit=3", KEY),
    ("OPENAI_API_KEY=sk-proj-abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnop"),
    ("x-api-key: 1234", "1234"),
    (f"('endpoint', '{WEBHOOK}')", WEBHOOK.removeprefix("whsec_")),
    ("WebhookEndpoint(id='we_1', secret='not prefixed, with commas')", "with commas"),
    ("{'old_secret': 'x y z'}", "y z"),
    ("aws_secret_access_key = wJalrXUtnFEMI", "wJalrXUtnFEMI"),
    ("postgresql://trunkline:hunter2@db:5432/trunkline", "hunter2"),
    ("cannot parse postgresql://u:p@ss/w0rd@db/trunkline", "w0rd"),
    ("cannot parse postgresql://u:12345@db/trunkline", "12345"),
    ("host=db user=trunkline password=hunter2 dbname=x", "hunter2"),
    ("PGPASSWORD='hun ter2' psql", "ter2"),
    (json.dumps(json.dumps({"password": "hun ter2"})), "ter2"),
]

INNOCENT = [
    "GET /v1/batches/{batch_id}: 200 in 0.012 s, 0 bytes in, 512 bytes out",
    "http://127.0.0.1:8000/v1 is up, ask admin@example.com",
    "http://127.0.0.1:8000",
    "batch batch_0123: in_progress -> finalizing in 1.5 s",
    "Incorrect API key provided: tl-***oM. Make one with `trunkline keys create`.",
    "html-fragments, sk-learn and tokens=12",
]


@pytest.mark.parametrize(("leak", "secret"), LEAKS)
def test_secrets_are_masked(leak: str, secret: str) -> None:
    redacted = Redactor().text(leak)
    assert secret not in redacted
    assert MASK in redacted


@pytest.mark.parametrize("line", INNOCENT)
def test_other_text_stays_as_it_is(line: str) -> None:
    assert Redactor().text(line) == line


def test_what_stands_around_a_secret_stays() -> None:
    redacted = Redactor().text(
        "postgresql://trunkline:hunter2@db:5432/x refused 'password': 'a b'."
    )
    assert redacted == "postgresql://trunkline:***@db:5432/x refused 'password': ***."


def test_secrets_that_are_told_are_masked_wherever_they_are() -> None:
    redactor = Redactor([PASSWORD, "abc", ""])
    told = redactor.text(f"FATAL: [{PASSWORD}] corr3ct-horse%2Cbattery abc")
    assert told == f"FATAL: [{MASK}] {MASK} abc"


def test_secrets_in_the_environment_are_known(
    monkeypatch: pytest.MonkeyPatch, log_to: Callable[..., Any]
) -> None:
    environment = {
        "TRUNKLINE_DATABASE_URL": "postgresql://trunkline:hunter%2F2@db/trunkline",
        "HF_TOKEN": "hf_abcdefgh",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
        "AWS_ACCESS_KEY_ID": "AKIA12345678",
        "DEBUG_TOKEN": "true",
        "TRUNKLINE_PORT": "8000",
    }
    secrets = {"hunter%2F2", "hunter/2", "hf_abcdefgh", "wJalrXUtnFEMI"}
    assert set(secrets_of(environment)) == secrets
    for name, text_ in environment.items():
        monkeypatch.setenv(name, text_)
    log = log_to(LogFormat.TEXT)
    for secret in secrets:
        logger.warning("cannot use %s, it is true", secret)
        assert secret not in log.text
    assert log.text.count("cannot use ***, it is true") == len(secrets)


@pytest.mark.parametrize(
    "piece", ["a", "secret", "password=", "://a:", "'", '\\"', "authorization: ", "tl-", "b'\"\\"]
)
def test_a_long_text_takes_no_longer_than_its_length_calls_for(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    Redactor([PASSWORD]).text(text)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("format_", list(LogFormat))
class TestLog:
    """Whatever is logged, in either format."""

    def test_messages_and_arguments(self, log_to: Callable[..., Any], format_: LogFormat) -> None:
        log = log_to(format_)
        logger.info("key %s", KEY)
        logger.info(f"key {KEY}")
        logger.info({"key": KEY, "nested": [{"password": "hunter2"}]})
        logger.info("headers %r", {"authorization": "Bearer other-token-123"})
        self._check(log, KEY, "hunter2", "other-token-123")

    def test_exceptions(self, log_to: Callable[..., Any], format_: LogFormat) -> None:
        log = log_to(format_)
        try:
            raise ValueError(f"cannot use {KEY}")
        except ValueError:
            logger.exception("failed", stack_info=True)
        assert "Traceback" in log.text
        self._check(log, KEY)

    def test_exceptions_of_the_database(
        self, log_to: Callable[..., Any], format_: LogFormat
    ) -> None:
        log = log_to(format_)
        engine = create_engine("sqlite://")
        try:
            with engine.connect() as connection:
                connection.execute(
                    text("INSERT INTO gone VALUES (:s, :k)"), {"s": WEBHOOK, "k": KEY}
                )
        except SQLAlchemyError:
            logger.exception("failed")
        engine.dispose()
        assert "INSERT INTO gone" in log.text
        self._check(log, KEY, WEBHOOK)

    def test_fields(self, log_to: Callable[..., Any], format_: LogFormat) -> None:
        log = log_to(format_)
        with log_fields(path=f"/x/{KEY}"):
            logger.info("hello", extra={"secret": "s3same", "given": {"api_key": "s3same"}})
        self._check(log, KEY, "s3same")

    def test_records_that_cannot_be_formatted(
        self, log_to: Callable[..., Any], format_: LogFormat
    ) -> None:
        log = log_to(format_)
        logger.info("%d keys", KEY)
        assert "test_redaction.py" in log.text
        self._check(log, KEY)

    def test_warnings(self, log_to: Callable[..., Any], format_: LogFormat) -> None:
        log = log_to(format_)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning(f"{KEY} is old", UserWarning, "file.py", 1)
        self._check(log, KEY)

    def _check(self, log: Any, *secrets: str) -> None:
        assert MASK in log.text or "malformed" in log.text
        for secret in secrets:
            assert secret not in log.text


def test_a_traceback_keeps_its_lines(log_to: Callable[..., Any]) -> None:
    log = log_to(LogFormat.TEXT)
    try:
        raise ValueError("too warm")
    except ValueError as error:
        expected = traceback.format_exception(error)
        logger.exception("failed")
    assert log.text.endswith("".join(expected))
