"""Uploads in parts, as the official client and plain HTTP send them."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from sqlalchemy import update

from tests.server.stores import every_store, on_sqlite
from tests.server.upload_calls import (
    LINE,
    MIB,
    add,
    complete,
    content,
    create,
    locked,
    send,
)
from tests.support import wait_for
from trunkline.store.projects import ApiKeys, Projects
from trunkline.store.schema import uploads


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
