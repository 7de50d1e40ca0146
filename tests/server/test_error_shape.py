"""Every error of every route has one shape, and every reply its id."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from tests.server.stores import every_store
from trunkline.server.app import create_app
from trunkline.server.settings import ServerSettings
from trunkline.store.migrate import upgrade

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# Those that have no way to be asked for something wrong.
ALWAYS_FINE = {
    *(("GET", path) for path in ("/", "/healthz", "/readyz", "/metrics")),
    *(("GET", path) for path in ("/v1/models", "/v1/engines", "/v1/webhook_event_types")),
    *(("GET", path) for path in ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc")),
}


def check(reply: httpx.Response) -> dict[str, Any]:
    """Check the shape of an error."""
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    body = reply.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["type"] == (
        "server_error" if reply.status_code >= 500 else "invalid_request_error"
    )
    for name in ("param", "code"):
        assert error[name] is None or isinstance(error[name], str)
    assert reply.headers.get("x-should-retry") == ("false" if reply.status_code == 409 else None)
    return error


@pytest.fixture
def app(tmp_path: Path) -> Iterator[FastAPI]:
    """The application without its background work."""
    settings = ServerSettings(data_dir=tmp_path)
    upgrade(settings.url)
    made = create_app(settings)
    yield made
    made.state.trunkline.database.close()


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def paths(app: FastAPI) -> dict[str, set[str]]:
    """Each path of the route table with the methods that it takes."""
    schema = app.openapi()["paths"]
    found = {path: {method.upper() for method in methods} for path, methods in schema.items()}
    assert {"/v1/files", "/v1/batches/{batch_id}/cancel", "/v1/models/{model}"} <= set(found)
    return found


@pytest.mark.anyio
async def test_every_route_refuses_what_is_wrong(app: FastAPI, http: httpx.AsyncClient) -> None:
    num_checked = 0
    for path, methods in paths(app).items():
        for method in methods:
            if (method, path) in ALWAYS_FINE:
                continue
            url = path.replace("{", "no-such-").replace("}", "")
            query = {"limit": "x"} if method == "GET" and "{" not in path else {}
            reply = await http.request(method, url, params=query, content=b"nonsense")
            assert reply.status_code in {400, 404}, (method, path, reply.text)
            check(reply)
            num_checked += 1
    assert num_checked >= 9


@pytest.mark.anyio
async def test_every_path_refuses_other_methods(app: FastAPI, http: httpx.AsyncClient) -> None:
    for path, methods in paths(app).items():
        for method in set(METHODS) - methods:
            reply = await http.request(method, path.replace("{", "").replace("}", ""))
            assert reply.status_code == 405, (method, path)
            assert method in check(reply)["message"]
            assert reply.headers["allow"]


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v2", "/v1/files/", "/v1/files/a/b", "/v1/unknown", "/%00"])
async def test_unknown_paths(http: httpx.AsyncClient, path: str) -> None:
    reply = await http.get(path)
    assert reply.status_code == 404
    assert "Invalid URL (GET" in check(reply)["message"]


@pytest.mark.anyio
async def test_what_nobody_foresaw(
    app: FastAPI, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise RuntimeError("secret")

    app.router.routes.append(APIRoute("/fails", fail))
    with caplog.at_level(logging.ERROR):
        reply = await http.get("/fails")
    assert reply.status_code == 500
    assert "secret" not in check(reply)["message"]
    # The log says more, and which reply it belongs to.
    assert reply.headers["x-request-id"] in caplog.text
    assert "RuntimeError: secret" in caplog.text


@pytest.mark.anyio
async def test_every_reply_has_an_id(http: httpx.AsyncClient) -> None:
    replies = [await http.get(path) for _, path in sorted(ALWAYS_FINE)]
    assert all(reply.status_code == 200 for reply in replies)
    assert len({reply.headers["x-request-id"] for reply in replies}) == len(replies)


@every_store
def test_characters_that_no_database_holds(server: Any) -> None:
    for path in ("/v1/files/%00", "/v1/files/%00/content", "/v1/batches/%00", "/v1/models/%00"):
        reply = server.http.get(path)
        assert reply.status_code in {400, 404}, path
        check(reply)
    for purpose in ("%00", "%ff"):
        reply = server.http.get(f"/v1/files?purpose={purpose}")
        if reply.status_code != 200:
            assert reply.status_code == 400
            check(reply)
    for file_id in (r"\u0000", r"\ud800"):
        body = f'{{"input_file_id":"{file_id}","endpoint":"/v1/completions",'
        body += '"completion_window":"24h"}'
        reply = server.http.post("/v1/batches", content=body)
        assert reply.status_code == 400
        check(reply)
