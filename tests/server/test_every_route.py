"""Every route once, on every store."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.server.live_server import CHAT, HANG_SECONDS
from tests.server.stores import every_store
from tests.support import wait_for
from trunkline.store.endpoints import ENDPOINTS
from trunkline.store.live import LiveWork

UPLOAD = {"filename": "a.txt", "purpose": "user_data", "bytes": 6, "mime_type": "text/plain"}


class Caller:
    """Asks a server, and knows which of its routes have answered."""

    def __init__(self, server: Any) -> None:
        self._http = server.http
        document = self._http.get("/openapi.json").json()
        self.routes = {
            (method.upper(), path)
            for path, operations in document["paths"].items()
            for method in operations
        }
        self.answered: set[tuple[str, str]] = set()

    def get(self, path: str, **content: Any) -> httpx.Response:
        return self._ask("GET", path, **content)

    def post(self, path: str, **content: Any) -> Any:
        return self._ask("POST", path, **content).json()

    def delete(self, path: str) -> None:
        assert self._ask("DELETE", path).json()["deleted"] is True

    def listed(self, path: str) -> set[str]:
        """The ids of a list."""
        return {each["id"] for each in self.get(path).json()["data"]}

    def _ask(self, method: str, path: str, **content: Any) -> httpx.Response:
        reply: httpx.Response = self._http.request(method, path, **content)
        assert reply.status_code == 200, (method, path, reply.text)
        found = {
            (of, route)
            for of, route in self.routes
            if of == method and re.fullmatch(re.sub("{[a-z_]+}", "[^/]+", route), path)
        }
        # A fixed path comes before one with a parameter.
        self.answered.add(min(found, key=lambda each: each[1].count("{")))
        return reply


def ask_what_is_there(ask: Caller, engine: Any) -> None:
    assert ask.get("/").json()["name"] == "trunkline"
    assert ask.get("/healthz").json() == {"status": "ok"}
    alive = ask.get("/readyz").json()["engines"]
    assert engine.model in {each["model"] for each in alive}
    assert engine.model in ask.listed("/v1/models")
    assert ask.get(f"/v1/models/{engine.model}").json()["id"] == engine.model
    assert engine.model in {each["model"] for each in ask.get("/v1/engines").json()["data"]}


def use_files(ask: Caller) -> None:
    data = b"abc" * 1000
    made = ask.post("/v1/files", files={"file": ("a.txt", data)}, data={"purpose": "user_data"})
    path = f"/v1/files/{made['id']}"
    assert ask.get(path).json() == made
    assert ask.get(f"{path}/content").content == data
    assert made["id"] in ask.listed("/v1/files")
    ask.delete(path)
    assert made["id"] not in ask.listed("/v1/files")


def use_uploads(ask: Caller) -> None:
    path = f"/v1/uploads/{ask.post('/v1/uploads', json=UPLOAD)['id']}"
    parts = [ask.post(f"{path}/parts", files={"data": data})["id"] for data in (b"def", b"abc")]
    done = ask.post(f"{path}/complete", json={"part_ids": parts[::-1]})
    assert ask.get(f"/v1/files/{done['file']['id']}/content").content == b"abcdef"
    other = ask.post("/v1/uploads", json=UPLOAD)["id"]
    assert ask.post(f"/v1/uploads/{other}/cancel")["status"] == "cancelled"


def use_batches(ask: Caller, server: Any, engine: Any) -> str:
    """The id of a batch that is completed."""
    lines = "".join(json.dumps(line) + "\n" for line in engine.lines(3))
    new = {
        "input_file_id": server.upload(lines.encode()).id,
        "endpoint": CHAT,
        "completion_window": "24h",
    }
    made = ask.post("/v1/batches", json=new)["id"]
    path = f"/v1/batches/{made}"
    server.wait(made, "in_progress")
    assert ask.post(path, json={"priority": 7})["trunkline"]["priority"] == 7
    assert ask.post(f"{path}/pause")["trunkline"]["paused_at"] is not None
    assert ask.post(f"{path}/resume")["trunkline"]["paused_at"] is None
    claim = engine.claim()
    engine.work.save_plan(claim, {"saved_share": 0.5})
    engine.complete(claim, failing={"request-1"})
    server.wait(made, "completed")

    assert ask.get(path).json()["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert len(ask.get(f"{path}/output").text.splitlines()) == 2
    assert len(ask.get(f"{path}/errors").text.splitlines()) == 1
    assert ask.get(f"{path}/progress").json()["errors"][0]["lines"] == [2]
    assert ask.get(f"{path}/plan").json()["plan"] == {"saved_share": 0.5}
    assert '"status": "completed"' in ask.get(f"{path}/events").text
    again = ask.post(f"{path}/retry")
    assert again["trunkline"]["retry_of"] == made
    assert ask.post(f"/v1/batches/{again['id']}/cancel")["status"] in {"cancelling", "cancelled"}
    assert {made, again["id"]} <= ask.listed("/v1/batches")
    server.wait(again["id"], "cancelled")
    return made


def use_webhooks(ask: Caller, server: Any, engine: Any) -> None:
    types = ask.get("/v1/webhook_event_types").json()["data"]
    # Whatever is answered there is an answer.
    new = {"name": "mine", "url": f"{server.base_url}/healthz", "event_types": types}
    made = ask.post("/v1/webhook_endpoints", json=new)
    path = f"/v1/webhook_endpoints/{made['id']}"
    assert ask.post(path, json={"name": "other"})["name"] == "other"
    assert ask.get(path).json()["name"] == "other"
    assert ask.post(f"{path}/rotate_secret")["signing_secret"] != made["signing_secret"]
    assert ask.post(f"{path}/test", json={"event_type": "batch.failed"})["status_code"] == 405
    assert made["id"] in ask.listed("/v1/webhook_endpoints")
    batch_id = use_batches(ask, server, engine)
    told = [each["event"]["data"]["id"] for each in ask.get(f"{path}/deliveries").json()["data"]]
    assert batch_id in told
    ask.delete(path)


def use_models(ask: Caller, server: Any, engine: Any) -> None:
    work = LiveWork(server.database)
    name = f"engine-of-{engine.model}"
    engine.work.heartbeat(name, {}, [], time.time() + HANG_SECONDS, 60)
    for endpoint in ENDPOINTS:
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(ask.post, endpoint, json={"model": engine.model})
            (request,) = wait_for(lambda: work.claim(name, [engine.model], time.time(), 1))
            work.answer(request.id, 200, json.dumps(request.endpoint))
            assert reply.result() == endpoint


@every_store
def test_every_route_answers(server: Any, engine: Any) -> None:
    ask = Caller(server)
    ask_what_is_there(ask, engine)
    use_files(ask)
    use_uploads(ask)
    use_webhooks(ask, server, engine)
    use_models(ask, server, engine)
    assert ask.answered == ask.routes
