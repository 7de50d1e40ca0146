"""For every route there is: what belongs to a project is not there for the key of another one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from trunkline.server.app import create_app
from trunkline.server.settings import ServerSettings
from trunkline.store.database import Database
from trunkline.store.migrate import upgrade
from trunkline.store.projects import ApiKeys, Projects

# What belongs to the installation: everybody with a key may see it.
SHARED = {
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/v1/engines"),
    ("GET", "/v1/webhook_event_types"),
}
# What is answered without a key.
OPEN = {
    *("/", "/healthz", "/readyz", "/metrics"),
    *("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"),
}
# Complete enough for every route, so that none can refuse the request for its form.
BODY = {
    "priority": 1,
    "part_ids": ["part_1"],
    "name": "n",
    "url": "https://example.org/",
    "event_types": ["batch.completed"],
    "event_type": "batch.completed",
}


class TwoProjects:
    """An application, what one project has made in it, and a client of each of two projects."""

    def __init__(self, folder: Path) -> None:
        settings = ServerSettings(data_dir=folder, served_model_name="tiny")
        upgrade(settings.url)
        database = Database.open(settings.url)
        keys = {
            name: ApiKeys(database).create(Projects(database).ensure(name, 0).id, "", 0)[1]
            for name in ("owner", "stranger")
        }
        database.close()
        self.app: FastAPI = create_app(settings, ("tiny",))
        self.client = TestClient(self.app, "http://127.0.0.1")
        self.owner = {"authorization": f"Bearer {keys['owner']}"}
        self.stranger = {"authorization": f"Bearer {keys['stranger']}"}

    def make_objects(self) -> None:
        """One object of each kind, by the name that it has in paths."""
        post = self._post
        line = {
            "custom_id": "a",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "tiny", "prompt": "x"},
        }
        file = post(
            "/v1/files",
            files={"file": ("in.jsonl", json.dumps(line))},
            data={"purpose": "batch"},
        )
        batch = post(
            "/v1/batches",
            json={
                "input_file_id": file["id"],
                "endpoint": "/v1/completions",
                "completion_window": "24h",
            },
        )
        upload = post(
            "/v1/uploads",
            json={
                "filename": "in.jsonl",
                "purpose": "batch",
                "bytes": 3,
                "mime_type": "application/jsonl",
            },
        )
        endpoint = post(
            "/v1/webhook_endpoints",
            json={key: BODY[key] for key in ("name", "url", "event_types")},
        )
        self.ids = {
            "file_id": file["id"],
            "batch_id": batch["id"],
            "upload_id": upload["id"],
            "endpoint_id": endpoint["id"],
        }

    def _post(self, path: str, **content: Any) -> dict[str, Any]:
        reply = self.client.post(path, headers=self.owner, **content)
        assert reply.status_code == 200, reply.text
        made: dict[str, Any] = reply.json()
        return made

    def routes(self) -> Iterator[tuple[str, str]]:
        """Method and path of all routes."""
        for path, operations in self.app.openapi()["paths"].items():
            for method in sorted(operations):
                yield method.upper(), path

    def call(
        self, method: str, path: str, headers: dict[str, str], ids: dict[str, str]
    ) -> tuple[int, str]:
        url = re.sub(r"{(\w+)}", lambda match: ids[match[1]], path)
        content: dict[str, Any] = {}
        if path.endswith("/parts"):
            content = {"files": {"data": b"abc"}}
        elif method in {"POST", "PATCH", "PUT"}:
            content = {"json": BODY}
        reply = self.client.request(method, url, headers=headers, **content)
        return reply.status_code, reply.text


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoProjects]:
    made = TwoProjects(tmp_path_factory.mktemp("isolation"))
    with made.client:
        made.make_objects()
        yield made


def test_no_route_is_hidden_from_these_tests(two: TwoProjects) -> None:
    described = {path for _, path in two.routes()}
    num_routers = 0
    for entry in two.app.routes:
        router = getattr(entry, "original_router", None)
        if not isinstance(router, APIRouter):
            continue
        num_routers += 1
        for route in router.routes:
            path = re.sub(":path}", "}", getattr(route, "path", ""))
            if path.startswith("/v1") and isinstance(route, APIRoute):
                assert path in described, f"{path} is not in the OpenAPI document"
    assert num_routers >= 5


def test_every_route_needs_a_key(two: TwoProjects) -> None:
    for method, path in two.routes():
        if path in OPEN or path.startswith("/dashboard"):
            continue
        ids = {**two.ids, "model": "tiny"}
        status, text = two.call(method, path, {}, ids)
        assert status == 401, f"{method} {path} without a key: {status} {text}"


def test_objects_of_another_project_are_not_there(two: TwoProjects) -> None:
    seen = 0
    for method, path in two.routes():
        names = re.findall(r"{(\w+)}", path)
        if (method, path) in SHARED or path in OPEN or not names:
            continue
        unknown = set(names) - set(two.ids)
        assert not unknown, f"{method} {path}: what is {unknown}? add one to `make_objects`"
        status, text = two.call(method, path, two.stranger, two.ids)
        assert status == 404, f"{method} {path} for a stranger: {status} {text}"
        nobody = dict.fromkeys(two.ids, "none_1")
        assert two.call(method, path, two.owner, nobody)[0] == 404, f"{method} {path}"
        # Word for word what is said of an object that was never made.
        hidden = re.sub("|".join(two.ids.values()), "none_1", text)
        assert hidden == two.call(method, path, two.stranger, nobody)[1]
        seen += 1
    assert seen >= 20


def test_lists_of_another_project_are_empty(two: TwoProjects) -> None:
    seen = 0
    for method, path in two.routes():
        if method != "GET" or "{" in path or (method, path) in SHARED or path in OPEN:
            continue
        if path.startswith("/dashboard"):
            continue
        status, text = two.call(method, path, two.stranger, {})
        assert (status, json.loads(text)["data"]) == (200, []), path
        assert json.loads(two.call(method, path, two.owner, {})[1])["data"] != [], path
        seen += 1
    assert seen >= 3


def test_another_projects_file_cannot_be_the_input_of_a_batch(two: TwoProjects) -> None:
    body = {
        "input_file_id": two.ids["file_id"],
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    }
    reply = two.client.post("/v1/batches", json=body, headers=two.stranger)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "input_file_id"


def test_the_owner_still_has_everything(two: TwoProjects) -> None:
    """Nothing that a stranger tried has changed anything."""
    for path in (
        f"/v1/files/{two.ids['file_id']}",
        f"/v1/batches/{two.ids['batch_id']}",
        f"/v1/webhook_endpoints/{two.ids['endpoint_id']}",
    ):
        assert two.client.get(path, headers=two.owner).status_code == 200
    batch = two.client.get(f"/v1/batches/{two.ids['batch_id']}", headers=two.owner).json()
    assert batch["status"] in {"validating", "in_progress"}
