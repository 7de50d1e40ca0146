"""What `POST /v1/batches` takes and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.server.stores import every_store

CHAT = "/v1/chat/completions"
MISSING = "Missing required parameter: '{}'."
WRONG_TYPE = "Invalid type for '{}': expected {}, but got {} instead."
EXPIRES = "output_expires_after"


def good_request(server: Any) -> dict[str, Any]:
    file = server.upload(b"{}\n")
    return {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}


def missing(name: str, **changes: Any) -> tuple[dict[str, Any], str, str, str]:
    return changes, MISSING.format(name), name, "missing_required_parameter"


def wrong_type(
    name: str, expected: str, got: str, **changes: Any
) -> tuple[dict[str, Any], str, str, str]:
    return changes, WRONG_TYPE.format(name, expected, got), name, "invalid_type"


def wrong_value(name: str, message: str, **changes: Any) -> tuple[dict[str, Any], str, str, str]:
    return changes, message, name, "invalid_value"


@pytest.mark.parametrize(
    ("changes", "message", "param", "code"),
    [
        *[
            missing(name, **{name: value})
            for name in ("input_file_id", "endpoint", "completion_window")
            for value in (..., None)
        ],
        wrong_type("input_file_id", "a string", "an integer", input_file_id=7),
        wrong_value(
            "endpoint",
            "Invalid value: '/v1/nonsense'. Supported values are: '/v1/chat/completions', "
            "'/v1/completions', '/v1/responses', '/v1/embeddings', '/v1/score' and '/v1/rerank'.",
            endpoint="/v1/nonsense",
        ),
        *[
            wrong_value(
                "completion_window",
                f"Invalid value for 'completion_window': '{window}'. Supported values are: '24h'.",
                completion_window=window,
            )
            for window in ("1h", "48h", "")
        ],
        wrong_type("metadata.tags", "a string", "an array", metadata={"tags": ["a"]}),
        wrong_type("metadata", "an object", "a string", metadata="a"),
        wrong_value(
            "metadata",
            "Invalid 'metadata': 17 pairs, at most 16 are allowed.",
            metadata={str(i): "" for i in range(17)},
        ),
        wrong_value(
            "metadata",
            "Invalid 'metadata': a key has 65 characters, at most 64 are allowed.",
            metadata={"k" * 65: ""},
        ),
        wrong_value(
            "metadata.k",
            "Invalid 'metadata.k': 513 characters, at most 512 are allowed.",
            metadata={"k": "v" * 513},
        ),
        wrong_type(EXPIRES, "an object", "an integer", output_expires_after=3600),
        missing(f"{EXPIRES}.anchor", output_expires_after={"seconds": 3600}),
        missing(f"{EXPIRES}.seconds", output_expires_after={"anchor": "created_at"}),
        wrong_value(
            f"{EXPIRES}.anchor",
            f"Invalid value for '{EXPIRES}.anchor': expected 'created_at', got 'now'.",
            output_expires_after={"anchor": "now", "seconds": 3600},
        ),
        *[
            wrong_value(
                f"{EXPIRES}.seconds",
                f"Invalid value for '{EXPIRES}.seconds': expected from 3600 to 2592000, got "
                f"{seconds}.",
                output_expires_after={"anchor": "created_at", "seconds": seconds},
            )
            for seconds in (3599, 2_592_001)
        ],
        wrong_type(
            f"{EXPIRES}.seconds",
            "an integer",
            "a boolean",
            output_expires_after={"anchor": "created_at", "seconds": True},
        ),
        (
            {"input_file_id": "file-nowhere"},
            "Cannot find file file-nowhere, or organization default does not have access to it.",
            "input_file_id",
            "invalid_request",
        ),
    ],
)
def test_wrong_parameters(
    server: Any, changes: dict[str, Any], message: str, param: str, code: str
) -> None:
    body = {n: v for n, v in {**good_request(server), **changes}.items() if v is not ...}
    latest = server.http.get("/v1/batches").json()["first_id"]
    reply = server.http.post("/v1/batches", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"] == {
        "message": message,
        "type": "invalid_request_error",
        "param": param,
        "code": code,
    }
    assert server.http.get("/v1/batches").json()["first_id"] == latest


@every_store
@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": {"a": "\ud800"}},
        {"metadata": {"\udc00": "a"}},
        {"metadata": {"\ud800": 7}},
        {"endpoint": "/v1/\ud800"},
        {"completion_window": "\ud800"},
        {"input_file_id": "file-\ud800"},
        {"input_file_id": "file-\0"},
        {"output_expires_after": {"anchor": "\ud800", "seconds": 3600}},
    ],
)
def test_text_that_no_reply_could_repeat(server: Any, changes: dict[str, Any]) -> None:
    body = json.dumps({**good_request(server), **changes}).encode()
    reply = server.http.post("/v1/batches", content=body)
    assert reply.status_code == 400, reply.text
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert server.http.get("/v1/batches").status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"7", b"null", b'"x"', b"\xff", b"[" * 200_000, b'{"a": NaN}']
)
def test_a_body_that_is_no_object(server: Any, body: bytes) -> None:
    reply = server.http.post("/v1/batches", content=body)
    assert reply.status_code == 400
    assert "body of this request is" in reply.json()["error"]["message"]


def test_a_body_that_is_too_long(server: Any) -> None:
    body = json.dumps({**good_request(server), "filler": "x" * 2_000_000}).encode()
    assert server.http.post("/v1/batches", content=body).status_code == 413
    assert server.http.post("/v1/batches", content=iter([body])).status_code == 413


def test_a_file_with_another_purpose(server: Any) -> None:
    file = server.client.files.create(file=("a.jsonl", b"{}"), purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="purpose 'user_data'") as caught:
        server.client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert (caught.value.param, caught.value.code) == ("input_file_id", "invalid_request")


@every_store
def test_metadata_come_back(server: Any) -> None:
    request = good_request(server)
    for metadata in (None, {}, {f"{i:064}": "ü" * 512 for i in range(16)}):
        created = server.client.batches.create(**{**request, "metadata": metadata})
        assert created.metadata == metadata
        assert server.client.batches.retrieve(created.id).metadata == metadata


def test_unknown_keys_are_ignored(server: Any) -> None:
    request = {**good_request(server), "urgency": "low", "extra_body": {"a": 1}}
    assert server.http.post("/v1/batches", json=request).status_code == 200
