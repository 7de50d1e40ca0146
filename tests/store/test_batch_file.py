"""The lines of input files, good and bad, and of output files."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from trunkline.store.batch_file import (
    MAX_CUSTOM_ID_CHARACTERS,
    BatchFileError,
    LineChecker,
    iterate_lines,
    output_line,
    read_batch_file,
)
from trunkline.store.records import NewRequest, Outcome

CHAT = "/v1/chat/completions"


def line(**changes: Any) -> bytes:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
    record = {"custom_id": "a", "method": "POST", "url": CHAT, "body": body, **changes}
    return json.dumps({name: value for name, value in record.items() if value is not ...}).encode()


def body(**changes: Any) -> dict[str, Any]:
    values = {"model": "tiny", "messages": [], **changes}
    return {name: value for name, value in values.items() if value is not ...}


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b"[" * 100_000, "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (line(custom_id=...), "missing_required_parameter", "custom_id"),
        (line(method=None), "missing_required_parameter", "method"),
        (line(url=...), "missing_required_parameter", "url"),
        (line(body=...), "missing_required_parameter", "body"),
        (line(custom_id=7), "invalid_type", "custom_id"),
        (line(custom_id=""), "invalid_custom_id", "custom_id"),
        (line(custom_id="x" * (MAX_CUSTOM_ID_CHARACTERS + 1)), "invalid_custom_id", "custom_id"),
        (line(custom_id="a\0"), "invalid_custom_id", "custom_id"),
        (line(custom_id="a\ud800"), "invalid_custom_id", "custom_id"),
        (line(custom_id="known"), "duplicate_custom_id", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url=7), "invalid_type", "url"),
        (line(url="/v1/completions"), "invalid_url", "url"),
        (line(body=[]), "invalid_type", "body"),
        (line(body=body(stream=True)), "streaming_unsupported", "body.stream"),
        (line(body=body(model=...)), "invalid_request", "body.model"),
        (line(body=body(model=7)), "invalid_type", "body.model"),
        (line(body=body(model="tiny\udc00")), "invalid_request", "body.model"),
        (line(body=body(model="other")), "mismatched_model", "body.model"),
        (line(body=body(model="unknown")), "model_not_found", "body.model"),
        (line(body=body(messages=...)), "invalid_request", "body.messages"),
    ],
)
def test_a_bad_line_is_reported_once(raw: bytes, code: str, param: str | None) -> None:
    checker = LineChecker(CHAT, {"tiny", "other"})
    assert checker.check(1, 0, line(custom_id="known")) is not None
    assert checker.check(2, 100, raw) is None
    (error,) = checker.errors
    assert (error.code, error.param, error.line) == (code, param, 2)
    error.message.encode()


def test_a_long_custom_id_can_be_stored(store: Any) -> None:
    # Random code points of four bytes: nothing that an index could compress.
    longest = "".join(chr(0x10000 + i * 7919 % 0xFFFFF) for i in range(MAX_CUSTOM_ID_CHARACTERS))
    checker = LineChecker(CHAT, None)
    checked = checker.check(1, 0, line(custom_id=longest))
    assert checked is not None
    store.validating()
    claim = store.closing.claim("server", 0, 60)
    store.closing.accept(claim, [NewRequest(1, checked.custom_id, 0, 44)], "tiny", 0, 0)
    store.work.commit(store.work.claim("engine", ["tiny"], 0, 60), [Outcome(1, 200, "{}")], 0)
    (row,) = store.outcomes.by_line(claim.batch_id)
    assert row.custom_id == longest


def test_lines_are_numbered_and_placed_as_the_file_has_them() -> None:
    raw = b"\xef\xbb\xbf" + line() + b"\r\n\n  \n" + line(custom_id="b")
    found = list(iterate_lines(io.BytesIO(raw)))
    assert [number for number, _, _ in found] == [1, 4]
    for _, offset, text in found:
        assert raw[offset : offset + len(text)] == text
        assert not text.endswith(b"\r")


def test_every_bad_line_is_reported() -> None:
    raw = b"{\n" + line() + b"\n" + line() + b"\n"
    with pytest.raises(BatchFileError) as caught:
        read_batch_file(io.BytesIO(raw))
    assert [(e.line, e.code) for e in caught.value.errors] == [
        (1, "invalid_json_line"),
        (3, "duplicate_custom_id"),
    ]
    with pytest.raises(BatchFileError, match="empty"):
        read_batch_file(io.BytesIO(b"\n \n"))


def test_output_lines() -> None:
    answered = output_line("ä\n", Outcome(1, 200, '{"id":"x"}'), "batch_req_1")
    assert answered.endswith(b"\n")
    assert answered.count(b"\n") == 1
    assert json.loads(answered) == {
        "id": "batch_req_1",
        "custom_id": "ä\n",
        "response": {"status_code": 200, "request_id": "batch_req_1", "body": {"id": "x"}},
        "error": None,
    }
    expired = Outcome(1, error_code="batch_expired", error_message="too late")
    assert json.loads(output_line("a", expired, "batch_req_2")) == {
        "id": "batch_req_2",
        "custom_id": "a",
        "response": None,
        "error": {"code": "batch_expired", "message": "too late"},
    }
