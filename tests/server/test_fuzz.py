"""Whatever a client sends, the reply is what the OpenAPI document says, and never a failure."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.python.asgi import shutdown_lifespans
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from trunkline.server.app import create_app
from trunkline.server.settings import ServerSettings
from trunkline.store.migrate import upgrade

BASE = "http://localhost"
# What this takes beside its path is free text: nothing about it can be wrong.
NEVER_WRONG = {"POST /v1/batches/{batch_id}/retry"}

LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"model": "tiny", "prompt": "x"},
}


def _make_objects(client: TestClient) -> dict[str, str]:
    """One object of each kind, by the name that it has in paths."""

    def post(path: str, **content: Any) -> str:
        reply = client.post(path, **content)
        assert reply.status_code == 200, reply.text
        made: str = reply.json()["id"]
        return made

    file_id = post(
        "/v1/files",
        files={"file": ("in.jsonl", json.dumps(LINE))},
        data={"purpose": "batch"},
    )
    batch = {
        "input_file_id": file_id,
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    }
    upload = {"filename": "f", "purpose": "batch", "bytes": 3, "mime_type": "text/plain"}
    endpoint = {"name": "n", "url": "https://hooks.invalid/", "event_types": ["batch.failed"]}
    return {
        "file_id": file_id,
        "batch_id": post("/v1/batches", json=batch),
        "upload_id": post("/v1/uploads", json=upload),
        "endpoint_id": post("/v1/webhook_endpoints", json=endpoint),
        "model": "tiny",
    }


@dataclass(frozen=True)
class Api:
    """The application as its OpenAPI document has it."""

    operations: tuple[schemathesis.APIOperation, ...]
    known: dict[str, str]  # ids of objects that are there, by the name that they have in paths


@pytest.fixture
def api(tmp_path: Path, database_url: str) -> Iterator[Api]:
    """The application's OpenAPI document, and the application behind it."""
    config = ServerSettings(data_dir=tmp_path, database_url=database_url)
    upgrade(config.url)
    stopping = threading.Event()
    stopping.set()  # streams of events end after the first
    app = create_app(config, ("tiny",), stopping)
    known = _make_objects(TestClient(app, BASE))
    document = schemathesis.openapi.from_asgi("/openapi.json", app)
    found = [each.ok() for each in document.get_all_operations()]
    # What the others ask for is deleted last.
    operations = tuple(sorted(found, key=lambda each: each.method.upper() == "DELETE"))
    yield Api(operations, known)
    shutdown_lifespans()  # or the application's jobs go on until the process ends
    app.state.trunkline.database.close()


def error_shape(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """Every error has the one shape."""
    if response.status_code < 400:
        return
    body = response.json()
    assert set(body) == {"error"}, (case, body)
    assert set(body["error"]) == {"message", "type", "param", "code"}, (case, body)
    assert body["error"]["message"], case
    assert response.headers["x-request-id"]


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    error_shape,
]


@pytest.mark.parametrize(
    ("empty_database_url", "num_examples"),
    [
        ("sqlite", 5),
        pytest.param("sqlite", 25, marks=pytest.mark.slow),
        pytest.param("postgres", 25, marks=pytest.mark.slow),
    ],
    indirect=["empty_database_url"],
)
def test_any_request(api: Api, subtests: pytest.Subtests, num_examples: int) -> None:
    assert len(api.operations) >= 30
    right, wrong = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    for operation in api.operations:
        names = {parameter.name for parameter in operation.path_parameters}
        known = {name: api.known[name] for name in names}
        takes_input = any(map(len, (operation.query, operation.headers, operation.body)))
        can_be_wrong = takes_input and operation.label not in NEVER_WRONG
        with subtests.test(operation.label):
            # Where there is nothing to vary, there is one request.
            num_sent = _fuzz(operation, num_examples, right, {})
            assert num_sent == (num_examples if takes_input or names else 1)
            num_sent = _fuzz(operation, num_examples, right, known)
            assert num_sent == (num_examples if takes_input else 1)
            if can_be_wrong:
                assert _fuzz(operation, num_examples, wrong, known) == num_examples
            else:
                with pytest.raises(Unsatisfiable):
                    _fuzz(operation, num_examples, wrong, known)


def _fuzz(
    operation: schemathesis.APIOperation,
    num_examples: int,
    mode: schemathesis.GenerationMode,
    path_parameters: dict[str, str],
) -> int:
    """Send requests that the document allows, or that it does not; how many."""
    num_sent = 0

    @settings(
        max_examples=num_examples,
        deadline=None,  # the machine may be busy
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode, path_parameters=path_parameters))
    def send(case: schemathesis.Case) -> None:
        nonlocal num_sent
        num_sent += 1
        case.call_and_validate(base_url=BASE, checks=CHECKS)

    send()
    return num_sent
