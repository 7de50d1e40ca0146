"""Uploads in parts, as the official client and plain HTTP send them."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from sqlalchemy import Connection, select, update

from tests.server.stores import every_store, on_sqlite
from tests.support import wait_for
from trunkline.store.projects import ApiKeys, Projects
from trunkline.store.schema import uploads

MIB = 1024 * 1024
LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'
UPLOAD = {
    "filename": "in.jsonl",
    "purpose": "user_data",
    "bytes": 6,
    "mime_type": "application/jsonl",
}


def create(server: Any, **changes: Any) -> str:
    """A new upload's id."""
    reply = server.http.post("/v1/uploads", json=UPLOAD | changes)
    assert reply.status_code == 200, reply.text
    upload_id: str = reply.json()["id"]
    return upload_id


def send(server: Any, upload_id: str, data: bytes) -> httpx.Response:
    reply: httpx.Response = server.http.post(
        f"/v1/uploads/{upload_id}/parts", files={"data": ("blob", data)}
    )
    return reply


def add(server: Any, upload_id: str, *parts: bytes) -> list[str]:
    """Ids of new parts."""
    ids = []
    for data in parts:
        reply = send(server, upload_id, data)
        assert reply.status_code == 200, reply.text
        ids.append(reply.json()["id"])
    return ids


def complete(
    server: Any, upload_id: str, part_ids: list[str], expected: int = 200, **body: Any
) -> dict[str, Any]:
    """The upload, or the error."""
    reply = server.http.post(
        f"/v1/uploads/{upload_id}/complete", json={"part_ids": part_ids, **body}
    )
    assert reply.status_code == expected, reply.text
    answer: dict[str, Any] = reply.json()
    return answer if expected == 200 else answer["error"]


def content(server: Any, upload: dict[str, Any]) -> bytes:
    data: bytes = server.client.files.content(upload["file"]["id"]).content
    return data


@contextmanager
def locked(server: Any, upload_id: str) -> Iterator[Connection]:
    """Nobody else can change the upload meanwhile."""
    with server.database.write() as connection:
        connection.execute(
            select(uploads.c.id).where(uploads.c.id == upload_id).with_for_update()
        ).one()
        yield connection


@every_store
def test_the_official_client_sends_a_file_in_parts(server: Any, tmp_path: Path) -> None:
    data = LINE + os.urandom(3_000_000)
    path = tmp_path / "grüße.jsonl"
    path.write_bytes(data)
    before = server.blobs()
    upload = server.client.uploads.upload_file_chunked(
        file=path,
        mime_type="application/jsonl",
        purpose="batch",
        part_size=700_000,
        md5=hashlib.md5(data).hexdigest(),
    )
    assert upload.id.startswith("upload_")
    assert (upload.object, upload.status, upload.bytes) == ("upload", "completed", len(data))
    assert (upload.filename, upload.purpose) == ("grüße.jsonl", "batch")
    assert upload.expires_at == upload.created_at + 3600
    assert upload.file is not None
    assert upload.file.expires_at == upload.file.created_at + 2_592_000
    assert server.client.files.retrieve(upload.file.id) == upload.file
    assert (upload.file.filename, upload.file.bytes) == ("grüße.jsonl", len(data))
    assert server.client.files.content(upload.file.id).content == data
    # The parts are gone.
    server.client.files.delete(upload.file.id)
    assert server.blobs() == before


def test_the_official_client_sends_bytes(server: Any) -> None:
    for data in (b"abcdef", b""):
        upload = server.client.uploads.upload_file_chunked(
            file=data, filename="a.txt", bytes=len(data), mime_type="text/plain", purpose="evals"
        )
        assert upload.file is not None
        assert upload.file.expires_at is None
        assert server.client.files.content(upload.file.id).content == data


def test_each_step_with_the_official_client(server: Any) -> None:
    client = server.client
    before = int(time.time())
    upload = client.uploads.create(
        bytes=6,
        filename="a.bin",
        mime_type="application/octet-stream",
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (upload.status, upload.file) == ("pending", None)
    assert before <= upload.created_at <= time.time()
    part = client.uploads.parts.create(upload.id, data=b"abcdef")
    assert part.id.startswith("part_")
    assert (part.object, part.upload_id) == ("upload.part", upload.id)
    assert before <= part.created_at <= time.time()
    done = client.uploads.complete(upload.id, part_ids=[part.id])
    assert done.file.expires_at == done.file.created_at + 3600
    other = client.uploads.create(
        bytes=6, filename="a.bin", mime_type="application/octet-stream", purpose="user_data"
    )
    assert client.uploads.cancel(other.id).status == "cancelled"


def test_a_batch_runs_on_a_file_that_came_in_parts(server: Any, engine: Any) -> None:
    data = "".join(json.dumps(line) + "\n" for line in engine.lines(20)).encode()
    upload = server.client.uploads.upload_file_chunked(
        file=data,
        filename="in.jsonl",
        bytes=len(data),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=1000,
    )
    batch = server.client.batches.create(
        input_file_id=upload.file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
    )
    engine.complete(engine.claim())
    assert server.wait_for_end(batch.id).request_counts.completed == 20


def test_parts_sent_at_the_same_time_take_the_order_of_their_ids(server: Any) -> None:
    chunks = [bytes([i]) * 50_000 for i in range(12)]
    upload_id = create(server, bytes=sum(map(len, chunks)))
    with ThreadPoolExecutor(6) as pool:
        ids = [part_ids[0] for part_ids in pool.map(lambda c: add(server, upload_id, c), chunks)]
    assert len(set(ids)) == len(chunks)
    done = complete(server, upload_id, ids[::-1])
    assert content(server, done) == b"".join(chunks[::-1])


@every_store
def test_parts_that_are_not_named_are_left_out(server: Any) -> None:
    before = server.blobs()
    upload_id = create(server)
    one, _, three, four = add(server, upload_id, b"abc", b"abc", b"def", b"")
    done = complete(server, upload_id, [three, four, one])
    assert content(server, done) == b"defabc"
    assert len(server.blobs() - before) == 1


def test_a_part_without_a_filename_and_with_other_fields(server: Any) -> None:
    upload_id = create(server)
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nno\r\n'
        b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\nabcdef\r\n--b--\r\n'
    )
    reply = server.http.post(
        f"/v1/uploads/{upload_id}/parts",
        content=body,
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    assert reply.status_code == 200, reply.text
    assert content(server, complete(server, upload_id, [reply.json()["id"]])) == b"abcdef"


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


def test_a_completion_that_is_sent_again(server: Any) -> None:
    upload_id = create(server)
    ids = add(server, upload_id, b"abc", b"def")
    before = server.blobs()
    done = complete(server, upload_id, ids)
    assert len(server.blobs()) == len(before) - 1
    blobs = server.blobs()
    assert complete(server, upload_id, ids) == done
    for others in (ids[::-1], ids[:1], []):
        error = complete(server, upload_id, others, expected=409)
        assert "is completed already, with other parts" in error["message"]
        assert error["param"] == "part_ids"
    assert server.blobs() == blobs
    server.client.files.delete(done["file"]["id"])
    assert complete(server, upload_id, ids) == done | {"file": None}


@every_store
def test_completions_at_the_same_time_make_one_file(server: Any) -> None:
    before = server.blobs()
    upload_id = create(server, bytes=8 * MIB)
    ids = add(server, upload_id, *(os.urandom(MIB) for _ in range(8)))
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: complete(server, upload_id, ids), range(4)))
    assert all(upload == done[0] for upload in done)
    assert len(server.blobs() - before) == 1


def refusals(server: Any, upload_id: str) -> list[str]:
    """What is said to those who go on with an upload that has ended."""
    messages = []
    for call in (
        lambda: send(server, upload_id, b"abc"),
        lambda: server.http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": []}),
        lambda: server.http.post(f"/v1/uploads/{upload_id}/cancel"),
    ):
        reply = call()
        if reply.status_code == 200:
            messages.append(reply.json()["status"])
            continue
        assert reply.status_code == 409
        assert reply.headers["x-should-retry"] == "false"
        messages.append(reply.json()["error"]["message"])
    return messages


def test_a_completed_upload_is_closed(server: Any) -> None:
    upload_id = create(server)
    complete(server, upload_id, add(server, upload_id, b"abcdef"))
    before = server.blobs()
    assert refusals(server, upload_id) == [
        "Cannot add a part to an upload with status 'completed'.",
        f"Upload {upload_id} is completed already, with other parts.",
        "Cannot cancel an upload with status 'completed'.",
    ]
    assert server.blobs() == before


@every_store
def test_a_cancelled_upload_is_closed(server: Any) -> None:
    before = server.blobs()
    upload_id = create(server)
    add(server, upload_id, b"abc", b"def")
    cancelled = server.client.uploads.cancel(upload_id)
    assert (cancelled.status, cancelled.file) == ("cancelled", None)
    assert server.blobs() == before
    assert refusals(server, upload_id) == [
        "Cannot add a part to an upload with status 'cancelled'.",
        "Cannot complete an upload with status 'cancelled'.",
        "cancelled",
    ]
    assert server.blobs() == before


@on_sqlite
def test_an_upload_expires_and_its_parts_are_deleted(make_server: Callable[..., Any]) -> None:
    server = make_server()
    upload_id = create(server)
    part_ids = add(server, upload_id, b"abc")
    assert len(server.blobs()) == 1
    with server.database.write() as connection:
        connection.execute(update(uploads).values(expires_at=int(time.time())))
    assert refusals(server, upload_id) == [
        "Cannot add a part to an upload with status 'expired'.",
        "Cannot complete an upload with status 'expired'.",
        "Cannot cancel an upload with status 'expired'.",
    ]
    complete(server, upload_id, part_ids, expected=409)
    server.stop()
    server.start()  # sweeps at once
    wait_for(lambda: server.blobs() == set())
    assert len(refusals(server, upload_id)) == 3


def test_an_upload_that_is_not_there(server: Any) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: server.client.uploads.parts.create("upload_x", data=b"a"),
        lambda: server.client.uploads.complete("upload_x", part_ids=[]),
        lambda: server.client.uploads.cancel("upload_x"),
    )
    for call in calls:
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert "No upload found with id 'upload_x'." in str(caught.value)


@on_sqlite
def test_an_upload_of_another_project(make_server: Callable[..., Any]) -> None:
    server = make_server(allow_anonymous=True)
    upload_id = create(server)
    part_ids = add(server, upload_id, b"abcdef")
    before = server.blobs()
    other = Projects(server.database).ensure("other", 0)
    _, key = ApiKeys(server.database).create(other.id, "test", 0)
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0) as client:
        calls: tuple[Callable[[], object], ...] = (
            lambda: client.uploads.parts.create(upload_id, data=b"a"),
            lambda: client.uploads.complete(upload_id, part_ids=part_ids),
            lambda: client.uploads.cancel(upload_id),
        )
        for call in calls:
            with pytest.raises(openai.NotFoundError):
                call()
        foreign = client.uploads.upload_file_chunked(
            file=b"x", filename="x", bytes=1, mime_type="text/plain", purpose="evals"
        )
        assert foreign.file is not None
        with pytest.raises(openai.NotFoundError):
            server.client.files.retrieve(foreign.file.id)
        client.files.delete(foreign.file.id)
    assert server.blobs() == before
    assert content(server, complete(server, upload_id, part_ids)) == b"abcdef"


@pytest.mark.slow  # the other tests have two servers where the bytes are in S3
def test_two_servers_share_an_upload(make_server: Callable[..., Any]) -> None:
    first, second = make_server(server_name="first"), make_server(server_name="second")
    upload_id = create(first)
    part_ids = [*add(first, upload_id, b"abc"), *add(second, upload_id, b"def")]
    done = complete(second, upload_id, part_ids)
    assert content(first, done) == b"abcdef"
    assert complete(first, upload_id, part_ids) == done


@on_sqlite
def test_a_server_that_is_killed_between_the_blob_and_its_row(
    make_server: Callable[..., Any],
) -> None:
    server = make_server()
    upload_id = create(server)
    part_ids = add(server, upload_id, b"abc", b"def")
    before = server.blobs()

    def ask() -> None:
        with pytest.raises(httpx.TransportError):
            complete(server, upload_id, part_ids)

    thread = threading.Thread(target=ask)
    with locked(server, upload_id):
        thread.start()
        wait_for(lambda: any(path.suffix != ".part" for path in server.blobs() - before))
        server.kill()
    thread.join()
    server.start()
    assert server.client.files.list().data == []
    done = complete(server, upload_id, part_ids)
    assert content(server, done) == b"abcdef"
    assert [file.id for file in server.client.files.list()] == [done["file"]["id"]]
    assert not server.blobs() & before


@every_store
def test_an_upload_that_is_cancelled_while_it_is_being_completed(server: Any) -> None:
    upload_id = create(server)
    part_ids = add(server, upload_id, b"abc", b"def")
    before = server.blobs()
    with ThreadPoolExecutor(1) as pool:
        with locked(server, upload_id) as connection:
            answer = pool.submit(complete, server, upload_id, part_ids, expected=409)
            wait_for(lambda: any(path.suffix != ".part" for path in server.blobs() - before))
            connection.execute(
                update(uploads).where(uploads.c.id == upload_id).values(status="cancelled")
            )
        error = answer.result()
    assert error["message"] == "Cannot complete an upload with status 'cancelled'."
    assert server.blobs() == before


@pytest.mark.parametrize("num_mib", [64, pytest.param(200, marks=pytest.mark.slow)])
def test_memory_stays_flat(
    sqlite_server: Any,  # the bytes take the same way on PostgreSQL
    tmp_path: Path,
    watching: Any,
    num_mib: int,
) -> None:
    server = sqlite_server
    path = tmp_path / "large.jsonl"
    chunk, digest = os.urandom(MIB), hashlib.md5()
    with path.open("wb") as file:
        for _ in range(num_mib):
            file.write(chunk)
            digest.update(chunk)
    # What the first upload imports is not what is measured.
    complete(server, first := create(server), add(server, first, b"abcdef"))
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with watching(process) as largest:
        upload = server.client.uploads.upload_file_chunked(
            file=path,
            mime_type="application/jsonl",
            purpose="user_data",
            md5=digest.hexdigest(),
        )
        growth = largest() - before
    assert growth < 32 * MIB, f"{growth / MIB:.0f} MiB"
    assert upload.file is not None
    received = hashlib.md5()
    with server.client.files.with_streaming_response.content(upload.file.id) as reply:
        for data in reply.iter_bytes(MIB):
            received.update(data)
    assert received.digest() == digest.digest()
