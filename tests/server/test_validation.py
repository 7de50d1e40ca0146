"""Input files that cannot be run, and odd ones that can."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.stores import every_store


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@every_store
def test_every_bad_line_is_reported_once(server: Any, engine: Any) -> None:
    def line(custom_id: str = "x", **changes: Any) -> bytes:
        record = {**engine.line(custom_id), **changes}
        return json.dumps({n: v for n, v in record.items() if v is not ...}).encode()

    def with_body(custom_id: str, **changes: Any) -> bytes:
        body = {**engine.line(custom_id)["body"], **changes}
        return line(custom_id, body={n: v for n, v in body.items() if v is not ...})

    cases: list[tuple[bytes, str | None, str | None]] = [
        (line("good"), None, None),
        (b"{", "invalid_json_line", None),
        (b"\xff\xfe", "invalid_json_line", None),
        (line("latin").replace(b"latin", b"l\xe4tin"), "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b"", None, None),
        (b" \t ", None, None),
        (line(custom_id=...), "missing_required_parameter", "custom_id"),
        (line("m", method=...), "missing_required_parameter", "method"),
        (line("u", url=...), "missing_required_parameter", "url"),
        (line("b", body=...), "missing_required_parameter", "body"),
        (line("good"), "duplicate_custom_id", "custom_id"),
        (line("get", method="GET"), "invalid_method", "method"),
        (line("other", url="/v1/completions"), "invalid_url", "url"),
        (with_body("s", stream=True), "streaming_unsupported", "body.stream"),
        (with_body("nm", model=...), "invalid_request", "body.model"),
        (with_body("um", model="nobody's"), "model_not_found", "body.model"),
        (with_body("mm", model="tiny"), "mismatched_model", "body.model"),
        (with_body("ms", messages=...), "invalid_request", "body.messages"),
        (line("last"), None, None),
    ]
    expected = [
        (code, number, param)
        for number, (_, code, param) in enumerate(cases, start=1)
        if code is not None
    ]
    for ending in (b"\n", b"\r\n"):
        data = b"\xef\xbb\xbf" + ending.join(raw for raw, _, _ in cases)
        assert server.errors(data) == expected
    batch = server.http.get("/v1/batches", params={"limit": 1}).json()["data"][0]
    assert batch["failed_at"] >= batch["created_at"]
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)
    assert batch["errors"]["object"] == "list"
    messages = {error["code"]: error["message"] for error in batch["errors"]["data"]}
    expected_messages = {
        "duplicate_custom_id": "The custom_id 'good' for this request is a duplicate of another "
        "request. The custom_id parameter must be unique for each request in a batch.",
        "mismatched_model": "The model 'tiny' for this request does not match the rest of the "
        "batch. Each batch must contain requests for a single model.",
        "model_not_found": "The provided model 'nobody's' is not supported by the Batch API.",
        "invalid_url": "The URL provided for this request does not match the batch endpoint.",
        "streaming_unsupported": "Chat Completions: Streaming is not supported in the Batch API.",
    }
    assert expected_messages.items() <= messages.items()
    parse_error = batch["errors"]["data"][0]
    assert parse_error["message"] == "This line is not parseable as valid JSON."


@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n\t\n", b"\xef\xbb\xbf"])
def test_an_empty_file(server: Any, data: bytes) -> None:
    assert server.errors(data) == [("empty_file", None, None)]
    batch = server.client.batches.list(limit=1).data[0]
    assert batch.errors.data[0].message == (
        "The input file is empty. Please ensure that the batch contains at least one request."
    )


@every_store
def test_a_wrong_line_can_hold_anything(server: Any, engine: Any) -> None:
    changes: list[dict[str, Any]] = [
        {"custom_id": "\ud800"},
        {"custom_id": "\0"},
        {"method": "\ud800"},
        {"url": "\ud800"},
        {"body": {"model": "\ud800", "messages": []}},
        {"body": {"model": "\0", "messages": []}},
    ]
    lines = [{**engine.line(f"r{i}"), **change} for i, change in enumerate(changes)]
    assert [line for _, line, _ in server.errors(jsonl(lines))] == [1, 2, 3, 4, 5, 6]
    assert server.http.get("/v1/batches").status_code == 200


@pytest.mark.parametrize("kind", ["NaN", "-Infinity", "Latin-1", "UTF-16", "surrogate"])
def test_what_only_python_takes_for_json(server: Any, engine: Any, kind: str) -> None:
    raw = json.dumps(engine.line("name", seed=7)).encode()
    wrong = {
        "NaN": raw.replace(b"7", b"NaN"),
        "-Infinity": raw.replace(b"7", b"-Infinity"),
        "Latin-1": raw.replace(b"name", b"n\xe4me"),
        "UTF-16": raw.decode().encode("utf-16-le"),
        "surrogate": raw.replace(b"name", b"\xed\xa0\x80"),
    }
    assert server.errors(wrong[kind]) == [("invalid_json_line", 1, None)]


def test_good_files_of_odd_form_are_run(server: Any, engine: Any) -> None:
    first, second, third = (json.dumps(line).encode() for line in engine.lines(3))
    data = b"\xef\xbb\xbf" + first + b"\r\n\r\n\n  " + second + b"  \n" + third
    batch = server.create(data)
    engine.complete(engine.claim())
    batch = server.wait_for_end(batch.id)
    assert batch.status == "completed"
    found = {result["custom_id"] for result in server.results(batch.output_file_id)}
    assert found == {"request-0", "request-1", "request-2"}


def test_more_lines_than_allowed(limited_server: Any, make_engine: Any) -> None:
    server = limited_server
    engine = make_engine(server)
    assert server.wait(server.create(jsonl(engine.lines(3))).id, "in_progress")
    assert server.errors(jsonl(engine.lines(4))) == [("too_many_requests", None, None)]
    message = server.client.batches.list(limit=1).data[0].errors.data[0].message
    assert message == "The input file has 4 requests; a batch may have at most 3."


@every_store
def test_a_file_that_is_gone(server: Any, engine: Any) -> None:
    before = server.blobs()
    file = server.upload(jsonl(engine.lines(1)))
    for blob in server.blobs() - before:
        server.delete_blob(blob)
    batch = server.client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = server.wait_for_end(batch.id)
    (error,) = batch.errors.data
    assert (error.code, error.line, error.param) == ("invalid_request", None, "file_id")
    assert error.message.startswith(f"Cannot find file {file.id}")
