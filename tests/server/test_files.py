"""Files: uploads in every form that clients send, lists, content, deletion."""

from __future__ import annotations

import io
import json
import os
import socket
import time
from typing import Any

import httpx
import openai
import pytest

from tests.server.stores import every_store
from tests.support import wait_for

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'
BOUNDARY = "boundary-of-the-test"
PURPOSE = ('form-data; name="purpose"', b"batch")
FILE = ('form-data; name="file"; filename="in.jsonl"', LINE)


def multipart(*parts: tuple[str, bytes], end: bytes = b"--\r\n") -> bytes:
    """A multipart body of parts with these dispositions and contents."""
    body = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
        for disposition, content in parts
    )
    return body + f"--{BOUNDARY}".encode() + end


def post(server: Any, body: bytes, boundary: str = BOUNDARY) -> httpx.Response:
    kind = f"multipart/form-data; boundary={boundary}"
    reply: httpx.Response = server.http.post(
        "/v1/files", content=body, headers={"content-type": kind}
    )
    return reply


@every_store
def test_an_upload_comes_back_as_it_was(server: Any) -> None:
    before = int(time.time())
    file = server.upload(LINE)
    assert file.id.startswith("file-")
    assert (file.object, file.filename, file.purpose) == ("file", "in.jsonl", "batch")
    assert (file.bytes, file.status) == (len(LINE), "processed")
    assert before <= file.created_at <= time.time()
    assert file.expires_at == file.created_at + 2_592_000
    assert server.client.files.retrieve(file.id) == file
    raw = server.http.get(f"/v1/files/{file.id}").json()
    assert raw["status_details"] is None
    assert server.client.files.wait_for_processing(file.id) == file


@every_store
def test_content_is_the_very_bytes(server: Any) -> None:
    data = LINE + os.urandom(3_000_000)
    file = server.upload(data)
    assert server.client.files.content(file.id).content == data
    for accepted in ("application/binary", "*/*", "application/json"):
        reply = server.http.get(f"/v1/files/{file.id}/content", headers={"accept": accepted})
        assert reply.status_code == 200
        assert reply.headers["content-length"] == str(len(data))
        assert reply.content == data


@pytest.mark.parametrize("parts", [(PURPOSE, FILE), (FILE, PURPOSE)])
def test_parts_come_in_either_order(server: Any, parts: Any) -> None:
    reply = post(server, multipart(*parts))
    assert reply.status_code == 200, reply.text
    assert server.client.files.content(reply.json()["id"]).content == LINE


def test_fields_that_nobody_knows_are_ignored(server: Any) -> None:
    unknown = ('form-data; name="custom_llm_provider"', b"openai")
    assert post(server, multipart(unknown, FILE, unknown, PURPOSE)).status_code == 200


def test_a_file_that_holds_its_boundary_almost(server: Any) -> None:
    data = LINE + b"\r\n--boundary-of-the-tes\r\n-\r\n--\r\n\r\n"
    reply = post(server, multipart((FILE[0], data), PURPOSE))
    assert server.client.files.content(reply.json()["id"]).content == data


def test_nameless_bytes_are_a_file(server: Any) -> None:
    for nameless in (LINE, io.BytesIO(LINE)):
        file = server.client.files.create(file=nameless, purpose="batch")
        assert (file.filename, file.bytes) == ("upload", len(LINE))


@pytest.mark.parametrize(
    "filename", ["grüße.jsonl", "in put.jsonl", "../../etc/passwd", "a;b=c.txt", "IN.JSONL"]
)
def test_any_filename_will_do(server: Any, filename: str) -> None:
    file = server.client.files.create(file=(filename, LINE), purpose="batch")
    reply = server.http.get(f"/v1/files/{file.id}/content")
    assert file.filename == filename
    assert reply.content == LINE


def test_a_filename_that_no_database_holds(server: Any) -> None:
    reply = post(
        server, multipart(('form-data; name="file"; filename="a\0b.jsonl"', LINE), PURPOSE)
    )
    assert reply.status_code in {200, 400}, reply.text


@pytest.mark.parametrize(
    "purpose", ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
)
def test_every_purpose_of_the_api(server: Any, purpose: Any) -> None:
    file = server.client.files.create(file=("a.jsonl", LINE), purpose=purpose)
    assert file.purpose == purpose
    assert [f.id for f in server.client.files.list(purpose=purpose, limit=1).data] == [file.id]
    assert (file.expires_at is not None) == (purpose == "batch")


def test_expires_after(server: Any) -> None:
    for seconds in (3600, 2_592_000):
        file = server.upload(LINE, expires_after={"anchor": "created_at", "seconds": seconds})
        assert file.expires_at == file.created_at + seconds


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"anchor": "created_at", "seconds": "3599"}, "expires_after.seconds"),
        ({"anchor": "created_at", "seconds": "2592001"}, "expires_after.seconds"),
        ({"anchor": "created_at", "seconds": "soon"}, "expires_after.seconds"),
        ({"anchor": "created_at", "seconds": "9" * 5000}, "expires_after.seconds"),
        ({"anchor": "created_at"}, "expires_after.seconds"),
        ({"anchor": "now", "seconds": "3600"}, "expires_after.anchor"),
        ({"seconds": "3600"}, "expires_after.anchor"),
    ],
)
def test_a_wrong_expires_after(server: Any, fields: dict[str, str], param: str) -> None:
    before = server.blobs()
    parts = [
        (f'form-data; name="expires_after[{name}]"', value.encode())
        for name, value in fields.items()
    ]
    reply = post(server, multipart(FILE, PURPOSE, *parts))
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert server.blobs() == before


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        (
            multipart(FILE),
            "Missing required parameter: 'purpose'.",
            "purpose",
            "missing_required_parameter",
        ),
        (
            multipart(PURPOSE),
            "Missing required parameter: 'file'.",
            "file",
            "missing_required_parameter",
        ),
        (
            multipart(FILE, ('form-data; name="purpose"', b"fun")),
            "Invalid value: 'fun'. Supported values are: ",
            "purpose",
            "invalid_value",
        ),
        (
            multipart(FILE, ('form-data; name="purpose"', b"batch_output")),
            "Invalid value: 'batch_output'. Supported values are: ",
            "purpose",
            "invalid_value",
        ),
        (multipart(FILE, FILE, PURPOSE), "more than one part named 'file'", "file", None),
        (
            multipart(('form-data; name="file"; filename="notes.txt"', b"Dear all,"), PURPOSE),
            "Invalid file format for Batch API. Must be .jsonl",
            None,
            None,
        ),
        (
            multipart(FILE, ('form-data; name="purpose"', b"x" * 70_000)),
            "'purpose' is longer than 65536 bytes",
            "purpose",
            None,
        ),
        (
            multipart(PURPOSE, *[(f'form-data; name="f{i}"', b"") for i in range(80)], FILE),
            "more than 64 fields",
            None,
            None,
        ),
        (multipart(FILE, PURPOSE, end=b""), "ends before its closing boundary", None, None),
        (multipart(FILE, PURPOSE)[:150], "ends before its closing boundary", None, None),
        (b"", "ends before its closing boundary", None, None),
        (b"no boundary at all", "cannot be parsed", None, None),
    ],
)
def test_what_is_wrong_with_an_upload(
    server: Any, body: bytes, message: str, param: str | None, code: str | None
) -> None:
    before, files = server.blobs(), server.http.get("/v1/files").json()
    reply = post(server, body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code)
    assert server.blobs() == before
    assert server.http.get("/v1/files").json() == files


@pytest.mark.parametrize("kind", [None, "application/json", "multipart/form-data", "nonsense;;="])
def test_a_body_of_another_type(server: Any, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    reply = server.http.post("/v1/files", content=multipart(FILE, PURPOSE), headers=headers)
    assert reply.status_code == 400
    assert "must be multipart/form-data" in reply.json()["error"]["message"]


@every_store
def test_a_client_that_hangs_up_leaves_nothing(server: Any) -> None:
    before, log = server.blobs(), server.log
    # More than a part of an upload to S3, of which nothing can be seen before.
    body = multipart(PURPOSE, (FILE[0], LINE * (10_000_000 // len(LINE))))
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode()
            + body[:-1000]
        )
        wait_for(lambda: server.blobs() != before)
    wait_for(lambda: server.blobs() == before)
    # That is the client's affair, not an error of the server.
    assert "Traceback" not in server.log.removeprefix(log)


def test_files_that_are_too_large(limited_server: Any) -> None:
    server = limited_server
    for purpose, num_bytes in (("batch", 1000), ("user_data", 2000)):
        file = server.client.files.create(file=("in.jsonl", LINE.ljust(num_bytes)), purpose=purpose)
        assert file.bytes == num_bytes
    before = server.blobs()
    for purpose, num_bytes in (("batch", 1001), ("user_data", 2001), ("user_data", 20_000_000)):
        with pytest.raises(openai.APIStatusError) as caught:
            server.client.files.create(file=("in.jsonl", LINE.ljust(num_bytes)), purpose=purpose)
        error = caught.value
        assert (error.status_code, error.code, error.param) == (413, "file_too_large", "file")
        assert str(1000 if purpose == "batch" else 2000) in str(error)
        assert server.blobs() == before
    body = iter([multipart((FILE[0], LINE * 2000), PURPOSE)])  # chunked: no length is declared
    kind = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    assert server.http.post("/v1/files", content=body, headers=kind).status_code == 413


@every_store
def test_lists_have_pages(server: Any) -> None:
    made = [server.client.files.create(file=("a.txt", b"x"), purpose="evals").id for _ in range(7)]
    newest_first = [file.id for file in server.client.files.list(purpose="evals", limit=3)]
    assert newest_first[:7] == made[::-1]
    assert len(set(newest_first)) == len(newest_first)
    oldest_first = [
        file.id for file in server.client.files.list(purpose="evals", limit=2, order="asc")
    ]
    assert oldest_first == newest_first[::-1]

    page = server.http.get("/v1/files", params={"purpose": "evals", "limit": 7}).json()
    assert (page["object"], page["first_id"], page["last_id"]) == ("list", made[6], made[0])
    rest = server.http.get("/v1/files", params={"purpose": "evals", "after": made[1]}).json()
    assert rest["data"][0]["id"] == made[0]
    assert rest["has_more"] is False
    nothing = server.http.get("/v1/files", params={"purpose": "no-such-purpose"}).json()
    expected = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert nothing == expected


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=many", "limit"),
        ("order=sideways", "order"),
        ("after=file-unknown", "after"),
        ("after=%00", "after"),
    ],
)
def test_wrong_queries_of_a_list(server: Any, query: str, param: str) -> None:
    reply = server.http.get(f"/v1/files?{query}")
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_value")


@every_store
def test_a_deleted_file_is_gone(server: Any) -> None:
    before = server.blobs()
    file = server.upload(LINE)
    deleted = server.client.files.delete(file.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (file.id, "file", True)
    assert server.blobs() == before
    for call in (
        server.client.files.retrieve,
        server.client.files.content,
        server.client.files.delete,
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call(file.id)
        assert str(caught.value).endswith(f"No such File object: {file.id}")
        assert caught.value.param == "id"


def test_the_input_of_a_batch_stays_until_the_batch_is_through(server: Any, engine: Any) -> None:
    batch = server.create("".join(json.dumps(line) + "\n" for line in engine.lines(2)).encode())
    for status in ("validating", "in_progress"):
        server.wait(batch.id, status, "in_progress")
        reply = server.http.delete(f"/v1/files/{batch.input_file_id}")
        assert reply.status_code == 409
        assert reply.headers["x-should-retry"] == "false"
        assert batch.id in reply.json()["error"]["message"]
    engine.complete(engine.claim())
    server.wait_for_end(batch.id)
    assert server.client.files.delete(batch.input_file_id).deleted
    assert server.client.batches.retrieve(batch.id).status == "completed"
