"""Webhook endpoints over HTTP: with the official SDK, and with what it would not send."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from tests.server.stores import every_store
from tests.support import wait_for
from trunkline.server.app import create_app
from trunkline.server.json_body import MAX_BODY_BYTES
from trunkline.server.settings import ServerSettings
from trunkline.store.migrate import upgrade

TYPES = ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]
BODY = {"name": "mine", "url": "https://example.org/hook", "event_types": ["batch.completed"]}


@every_store
def test_the_official_sdk_from_creation_to_deletion(server: Any, receiver: Any) -> None:
    webhooks = server.client.webhooks
    assert webhooks.event_types.list().data == TYPES
    made = [
        webhooks.create(name=f"hook {i}", url=receiver.url, event_types=["batch.completed"])
        for i in range(3)
    ]
    endpoint = made[0]
    assert endpoint.object == "webhook_endpoint"
    assert (endpoint.name, endpoint.url) == ("hook 0", receiver.url)
    assert endpoint.event_types == ["batch.completed"]
    assert endpoint.signing_secret.startswith("whsec_")
    assert endpoint.signing_secret.endswith(endpoint.signing_secret_hint[-4:])
    assert endpoint.signing_secret != made[1].signing_secret

    found = webhooks.retrieve(endpoint.id)
    assert not hasattr(found, "signing_secret"), "it is shown once"
    assert found.to_dict() == {
        key: value for key, value in endpoint.to_dict().items() if key != "signing_secret"
    }
    listed = list(islice(webhooks.list(limit=2), len(made)))
    assert [each.id for each in listed] == [each.id for each in reversed(made)]
    assert listed[-1] == found

    changed = webhooks.update(endpoint.id, name="other", event_types=["batch.failed"] * 2)
    assert (changed.name, changed.url) == ("other", receiver.url)
    assert changed.event_types == ["batch.failed"]
    assert webhooks.update(endpoint.id) == changed

    rotated = webhooks.rotate_secret(endpoint.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != endpoint.signing_secret
    result = webhooks.test(endpoint.id, event_type="batch.expired")
    assert (result.status_code, result.success) == (204, True)
    assert (result.object, result.event_type) == ("webhook_endpoint.test", "batch.expired")
    assert result.webhook_endpoint_id == endpoint.id
    for secret in (endpoint.signing_secret, rotated.signing_secret):
        request = receiver.requests[-1]
        event = webhooks.unwrap(request.body, request.headers, secret=secret)
        assert event.type == "batch.expired"

    assert webhooks.delete(endpoint.id).to_dict() == {
        "id": endpoint.id,
        "object": "webhook_endpoint.deleted",
        "deleted": True,
    }
    with pytest.raises(openai.NotFoundError, match="No webhook endpoint found"):
        webhooks.retrieve(endpoint.id)
    for other in made[1:]:
        webhooks.delete(other.id)


@every_store
def test_a_batch_that_has_ended_is_told(server: Any, engine: Any, receiver: Any) -> None:
    webhooks = server.client.webhooks
    endpoint = webhooks.create(name="mine", url=receiver.url, event_types=TYPES)
    batch = server.create(b"".join(json.dumps(line).encode() + b"\n" for line in engine.lines(2)))
    engine.complete(engine.claim())

    def told() -> list[Any]:
        # Batches of others may end meanwhile.
        return [each for each in receiver.requests if batch.id in each.body.decode()]

    wait_for(told)
    (request,) = told()
    event = webhooks.unwrap(request.body, request.headers, secret=endpoint.signing_secret)
    assert (event.type, event.data.id) == ("batch.completed", batch.id)
    assert server.client.batches.retrieve(batch.id).status == "completed"

    def delivered() -> Any:
        page = server.http.get(f"/v1/webhook_endpoints/{endpoint.id}/deliveries").json()
        (found,) = [each for each in page["data"] if each["event"]["data"]["id"] == batch.id]
        return found if found["status"] == "delivered" else None

    found = wait_for(delivered)
    assert event.created_at <= found.pop("delivered_at") <= time.time()
    assert found == {
        "id": event.id,
        "object": "webhook_endpoint.delivery",
        "webhook_endpoint_id": endpoint.id,
        "event": json.loads(request.body),
        "status": "delivered",
        "created_at": event.created_at,
        "num_attempts": 1,
        "next_attempt_at": None,
        "last_error": None,
    }
    webhooks.delete(endpoint.id)


@contextmanager
def running_app(folder: Path, **settings: Any) -> Iterator[TestClient]:
    resolved = ServerSettings(data_dir=folder, **settings)
    upgrade(resolved.url)
    with TestClient(create_app(resolved), "http://127.0.0.1") as client:
        yield client


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with running_app(tmp_path_factory.mktemp("webhooks")) as client:
        yield client


@pytest.fixture(scope="module")
def open_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Of a server that sends to private addresses too."""
    folder = tmp_path_factory.mktemp("open_webhooks")
    with running_app(folder, webhook_allow_private_addresses=True) as client:
        yield client


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"name": None}, "name", "Missing required parameter: 'name'."),
        ({"url": None}, "url", "Missing required parameter: 'url'."),
        ({"event_types": None}, "event_types", "Missing required parameter: 'event_types'."),
        ({"name": 1}, "name", "expected a string, but got an integer instead"),
        ({"name": ""}, "name", "expected 1 to 256"),
        ({"name": "x" * 257}, "name", "it has 257 characters"),
        ({"url": ["x"]}, "url", "expected a string, but got an array instead"),
        ({"url": "http://example.org/"}, "url", "scheme is 'http', expected 'https'"),
        ({"url": "https://a:b@example.org/"}, "url", "holds a user name or password"),
        ({"url": "https://192.168.0.1/"}, "url", "is not a public address"),
        ({"event_types": "batch.completed"}, "event_types", "expected an array"),
        ({"event_types": []}, "event_types", "at least one type"),
        ({"event_types": [None]}, "event_types[0]", "expected a string, but got null"),
        (
            {"event_types": ["batch.completed", "response.completed"]},
            "event_types[1]",
            f"'response.completed'. Supported values are: {', '.join(map(repr, TYPES))}.",
        ),
    ],
)
def test_what_is_wrong_is_named(
    client: TestClient, change: dict[str, Any], param: str, message: str
) -> None:
    response = client.post("/v1/webhook_endpoints", json=BODY | change)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert message in response.json()["error"]["message"]
    if None not in change.values():
        made = client.post("/v1/webhook_endpoints", json=BODY).json()
        path = f"/v1/webhook_endpoints/{made['id']}"
        assert client.post(path, json=change).json() == response.json()
        assert client.get(path).json()["name"] == "mine"


@pytest.mark.parametrize(
    ("action", "body", "message"),
    [
        ("/rotate_secret", b'{"keep_old_secret_active_for_24_hours": 1}', "expected a boolean"),
        ("/test", b"", "Missing required parameter: 'event_type'."),
        ("/test", b'{"event_type": "video.failed"}', "Supported values are: 'batch.completed'"),
        ("", b"{", "not valid JSON"),
        ("", b"[]", "an array, not an object"),
        ("", b'{"name": "\\u0000"}', "NUL character"),
        ("", b" " * (MAX_BODY_BYTES + 1), "longer than the maximum"),
    ],
)
def test_bodies_that_are_wrong(client: TestClient, action: str, body: bytes, message: str) -> None:
    made = client.post("/v1/webhook_endpoints", json=BODY).json()
    response = client.post(f"/v1/webhook_endpoints/{made['id']}{action}", content=body)
    assert response.status_code in {400, 413}
    assert message in response.json()["error"]["message"]


def test_rotating_without_a_body(client: TestClient) -> None:
    made = client.post("/v1/webhook_endpoints", json=BODY).json()
    rotated = client.post(f"/v1/webhook_endpoints/{made['id']}/rotate_secret").json()
    assert rotated["signing_secret"] != made["signing_secret"]


def test_a_test_tells_the_status_whatever_it_is(open_client: TestClient, receiver: Any) -> None:
    made = open_client.post("/v1/webhook_endpoints", json=BODY | {"url": receiver.url}).json()
    path = f"/v1/webhook_endpoints/{made['id']}"
    for status in (200, 301, 500):
        receiver.answer = lambda _, status=status: status
        result = open_client.post(f"{path}/test", json={"event_type": "batch.failed"}).json()
        assert result == {
            "object": "webhook_endpoint.test",
            "webhook_endpoint_id": made["id"],
            "event_type": "batch.failed",
            "status_code": status,
            "success": True,
        }
    assert len(receiver.requests) == 3
    assert open_client.get(f"{path}/deliveries").json()["data"] == []


def test_a_test_that_gets_no_answer(open_client: TestClient) -> None:
    url = {"url": "http://127.0.0.1:1/"}
    made = open_client.post("/v1/webhook_endpoints", json=BODY | url).json()
    path = f"/v1/webhook_endpoints/{made['id']}/test"
    response = open_client.post(path, json={"event_type": "batch.failed"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "webhook_endpoint_unreachable"
    assert "could not be reached" in response.json()["error"]["message"]


def test_a_test_to_a_private_address(client: TestClient) -> None:
    made = client.post("/v1/webhook_endpoints", json=BODY | {"url": "https://localhost/"}).json()
    path = f"/v1/webhook_endpoints/{made['id']}/test"
    response = client.post(path, json={"event_type": "batch.failed"})
    assert response.status_code == 400
    assert response.json()["error"] == {
        "message": "Nothing was sent. 'localhost' has an address that is not public. The "
        "server's setting TRUNKLINE_WEBHOOK_ALLOW_PRIVATE_ADDRESSES allows it.",
        "type": "invalid_request_error",
        "param": "url",
        "code": "invalid_value",
    }


def test_deliveries_of_an_endpoint_that_is_not_there(client: TestClient) -> None:
    response = client.get("/v1/webhook_endpoints/we_unknown/deliveries")
    assert response.status_code == 404
    made = client.post("/v1/webhook_endpoints", json=BODY).json()
    response = client.get(f"/v1/webhook_endpoints/{made['id']}/deliveries?after=evt_unknown")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "after"
