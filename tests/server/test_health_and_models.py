"""What is served, and whether the server can work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

import trunkline
from tests.server.stores import every_store
from trunkline.server.app import create_app
from trunkline.server.settings import ServerSettings
from trunkline.store.records import EngineRecord


@pytest.fixture
def unmigrated(tmp_path: Path) -> Iterator[TestClient]:
    """The application on a database without tables, and without its background work."""
    app = create_app(ServerSettings(data_dir=tmp_path))
    yield TestClient(app, "http://127.0.0.1")
    app.state.trunkline.database.close()


def register(engine: Any, name: str, model: str, seconds_ago: float = 0) -> None:
    now = time.time() - seconds_ago
    engine.work.register(EngineRecord(name, model, "cpu", "float32", int(now), now, 2048, {}))


def test_a_server_that_is_well(server: Any, engine: Any) -> None:
    assert server.http.get("/healthz").json() == {"status": "ok"}
    ready = server.http.get("/readyz")
    assert ready.status_code == 200
    body = ready.json()
    assert (body["status"], body["engine_alive"]) == ("ready", True)
    assert {"name": f"engine-of-{engine.model}", "model": engine.model, "device": "cpu"} in (
        body["engines"]
    )
    about = server.http.get("/").json()
    assert (about["name"], about["version"]) == ("trunkline", trunkline.__version__)


def test_an_engine_that_stopped_or_went_silent_is_not_alive(server: Any, engine: Any) -> None:
    def alive() -> set[str]:
        return {each["name"] for each in server.http.get("/readyz").json()["engines"]}

    register(engine, "silent", "m", seconds_ago=31)
    register(engine, "loud", "m", seconds_ago=-3600)  # however long this takes
    assert alive() & {"silent", "loud"} == {"loud"}
    engine.work.unregister("loud", time.time())
    assert "loud" not in alive()


def test_a_database_without_tables(unmigrated: TestClient) -> None:
    reply = unmigrated.get("/readyz")
    assert reply.status_code == 503
    assert reply.json() == {"status": "not_ready", "engine_alive": False, "engines": []}
    assert reply.headers["x-request-id"].startswith("req_")
    assert unmigrated.get("/healthz").status_code == 200
    assert unmigrated.get("/v1/files").status_code == 500
    error = unmigrated.get("/v1/files").json()["error"]
    assert (error["type"], error["code"]) == ("server_error", None)
    assert "sqlite" not in error["message"].lower()


@every_store
@pytest.mark.parametrize("name", ["org/name", "a/b/c", "Qwen3-0.6B", "ünï code"])
def test_models_have_any_name(server: Any, engine: Any, name: str) -> None:
    register(engine, f"engine-of-{name}", name)
    before = int(time.time()) - 60
    model = server.client.models.retrieve(name)
    assert (model.id, model.object, model.owned_by) == (name, "model", "trunkline")
    assert before <= model.created <= time.time()
    assert model in list(server.client.models.list())
    # What an engine has served is still a model when the engine has stopped.
    engine.work.unregister(f"engine-of-{name}", time.time())
    assert server.client.models.retrieve(name) == model


def test_slashes_may_be_escaped(server: Any, engine: Any) -> None:
    register(engine, "engine-of-slashes", "org/name")
    for path in ("org/name", "org%2Fname", "org%2fname"):
        assert server.http.get(f"/v1/models/{path}").json()["id"] == "org/name"


def test_the_expected_model_is_listed_before_its_engine_is_there(server: Any) -> None:
    assert "tiny" in {model.id for model in server.client.models.list()}
    assert server.client.models.retrieve("tiny").created <= time.time()


@pytest.mark.parametrize("name", ["nobody", "org/nobody", "org/name/"])
def test_an_unknown_model(server: Any, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.client.models.retrieve(name)
    error = caught.value
    assert (error.param, error.code) == ("model", "model_not_found")
    assert f"The model '{name}' does not exist" in str(error)
