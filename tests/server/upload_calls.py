"""The steps of an upload in parts, as plain HTTP sends them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from sqlalchemy import Connection, select

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
