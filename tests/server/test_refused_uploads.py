"""What is wrong with an upload, a part or a completion is said, and nothing is left of it."""

from __future__ import annotations

import hashlib
import socket
from typing import Any

import pytest

from tests.server.upload_calls import LINE, MIB, UPLOAD, add, complete, content, create, send


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        *(({name: None}, name, "missing_required_parameter") for name in UPLOAD),
        *(({name: 7}, name, "invalid_type") for name in ("filename", "purpose", "mime_type")),
        ({"filename": " "}, "filename", "invalid_value"),
        ({"mime_type": ""}, "mime_type", "invalid_value"),
        ({"purpose": "fun"}, "purpose", "invalid_value"),
        ({"purpose": "batch_output"}, "purpose", "invalid_value"),
        ({"bytes": "6"}, "bytes", "invalid_type"),
        ({"bytes": 6.0}, "bytes", "invalid_type"),
        ({"bytes": True}, "bytes", "invalid_type"),
        ({"bytes": -1}, "bytes", "invalid_value"),
        ({"bytes": 8 * 1024 * MIB + 1}, "bytes", "invalid_value"),
        ({"bytes": 200 * MIB + 1, "purpose": "batch"}, "bytes", "invalid_value"),
        ({"bytes": 10**400}, "bytes", "invalid_value"),
        ({"expires_after": 3600}, "expires_after", "invalid_type"),
        ({"expires_after": {}}, "expires_after.anchor", "invalid_value"),
        (
            {"expires_after": {"anchor": "created_at", "seconds": 3599}},
            "expires_after.seconds",
            "invalid_value",
        ),
        ({"expires_after": {"anchor": "created_at"}}, "expires_after.seconds", "invalid_value"),
    ],
)
def test_what_is_wrong_with_a_new_upload(
    server: Any, changes: dict[str, Any], param: str, code: str
) -> None:
    reply = server.http.post("/v1/uploads", json=UPLOAD | changes)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert param.rpartition(".")[2] in error["message"] or "Supported values" in error["message"]


def test_the_largest_uploads_may_be_announced(server: Any) -> None:
    create(server, bytes=8 * 1024 * MIB)
    create(server, bytes=200 * MIB, purpose="batch")


@pytest.mark.parametrize(
    ("files", "status", "message", "param", "code"),
    [
        ({}, 400, "must be multipart/form-data", None, None),
        ({"file": b"abc"}, 400, "Missing required parameter: 'data'.", "data", "missing_required"),
        ([("data", b"a"), ("data", b"b")], 400, "more than one part named 'data'", "data", None),
        ({"data": b"abcdefg"}, 400, "of which 6 bytes were announced", "data", "size_mismatch"),
    ],
)
def test_what_is_wrong_with_a_part(
    server: Any, files: Any, status: int, message: str, param: str | None, code: str | None
) -> None:
    upload_id = create(server)
    before = server.blobs()
    reply = server.http.post(f"/v1/uploads/{upload_id}/parts", files=files)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert message in error["message"]
    assert error["param"] == param
    assert (error["code"] or "").startswith(code or "")
    assert server.blobs() == before


def test_the_largest_part(server: Any) -> None:
    upload_id = create(server, bytes=65 * MIB)
    before = server.blobs()
    reply = send(server, upload_id, bytes(64 * MIB + 1))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (413, "data", "file_too_large")
    assert str(64 * MIB) in error["message"]
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            f"POST /v1/uploads/{upload_id}/parts HTTP/1.1\r\nHost: localhost\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n"
            "Content-Length: 70000000\r\n\r\n".encode()
        )
        # Nothing of the body has to be sent to be told.
        assert b" 413 " in connection.recv(100)
    assert server.blobs() == before


def test_an_upload_that_is_full(limited_server: Any) -> None:
    server = limited_server
    upload_id = create(server)
    ids = add(server, upload_id, b"abcdef", b"")
    before = server.blobs()
    reply = send(server, upload_id, b"ghijk")
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, "data", "upload_full")
    assert "at most 10 are allowed" in error["message"]
    assert server.blobs() == before
    # The same bytes again are not too many: the reply to the first may have been lost.
    add(server, upload_id, b"def")
    assert content(server, complete(server, upload_id, ids)) == b"abcdef"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "part_ids", "missing_required_parameter"),
        ({"part_ids": None}, "part_ids", "missing_required_parameter"),
        ({"part_ids": "part_1"}, "part_ids", "invalid_type"),
        ({"part_ids": ["$1", 7]}, "part_ids[1]", "invalid_type"),
        ({"part_ids": ["$1", "$2", "$1"]}, "part_ids", "invalid_value"),
        ({"part_ids": ["$1", "part_unknown"]}, "part_ids", "invalid_value"),
        ({"part_ids": ["$1", "$foreign"]}, "part_ids", "invalid_value"),
        ({"part_ids": ["$1"]}, "part_ids", "size_mismatch"),
        ({"part_ids": []}, "part_ids", "size_mismatch"),
        ({"part_ids": [f"part_{i}" for i in range(10_001)]}, "part_ids", "invalid_value"),
        ({"part_ids": ["$1", "$2"], "md5": 7}, "md5", "invalid_type"),
        ({"part_ids": ["$1", "$2"], "md5": "abc"}, "md5", "invalid_value"),
        ({"part_ids": ["$1", "$2"], "md5": "0" * 32}, "md5", "md5_mismatch"),
    ],
)
def test_what_is_wrong_with_a_completion(
    server: Any, body: dict[str, Any], param: str, code: str
) -> None:
    upload_id = create(server)
    one, two = add(server, upload_id, b"abc", b"def")
    (foreign,) = add(server, create(server), b"def")
    names = {"$1": one, "$2": two, "$foreign": foreign}
    if isinstance(body.get("part_ids"), list):
        body = body | {"part_ids": [names.get(part_id, part_id) for part_id in body["part_ids"]]}
    before = server.blobs()
    reply = server.http.post(f"/v1/uploads/{upload_id}/complete", json=body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert server.blobs() == before
    # Nothing is lost by it.
    md5 = hashlib.md5(b"abcdef").hexdigest().upper()
    assert content(server, complete(server, upload_id, [one, two], md5=md5)) == b"abcdef"


def test_a_batch_file_must_be_one(server: Any) -> None:
    notes = create(server, purpose="batch", filename="notes.txt")
    ids = add(server, notes, b"Dear a")
    before = server.blobs()
    error = complete(server, notes, ids, expected=400)
    assert error["message"] == "Invalid file format for Batch API. Must be .jsonl"
    assert server.blobs() == before
    lines = create(server, purpose="batch", filename="notes.txt", bytes=len(LINE) + 4)
    ids = add(server, lines, b"\xef\xbb\xbf\n", LINE)
    assert content(server, complete(server, lines, ids)) == b"\xef\xbb\xbf\n" + LINE
