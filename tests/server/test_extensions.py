"""What this server has beside OpenAI's API."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.server.live_server import HANG_SECONDS
from tests.server.stores import every_store
from trunkline.store.states import BatchStatus


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _post(server: Any, path: str, body: Any = None, **headers: str) -> httpx.Response:
    reply: httpx.Response = server.http.post(f"/v1/batches{path}", json=body, headers=headers)
    return reply


def _lines(reply: httpx.Response) -> list[str]:
    return [json.loads(line)["custom_id"] for line in reply.text.splitlines()]


def test_results_while_the_batch_runs(server: Any, engine: Any) -> None:
    batch = server.create(jsonl(engine.lines(6)))
    claim = engine.claim()
    engine.answer(claim, limit=3, failing={"request-1"})
    output, errors = (server.http.get(f"/v1/batches/{batch.id}/{k}") for k in ("output", "errors"))
    assert (_lines(output), _lines(errors)) == (["request-0", "request-2"], ["request-1"])
    assert (output.headers["x-incomplete"], output.headers["x-last-line"]) == ("true", "3")
    engine.complete(claim)
    done = server.wait_for_end(batch.id)
    rest = server.http.get(f"/v1/batches/{batch.id}/output", params={"offset": 3})
    assert _lines(rest) == ["request-3", "request-4", "request-5"]
    assert (rest.headers["x-incomplete"], rest.headers["x-last-line"]) == ("false", "6")
    in_file = server.client.files.content(done.output_file_id).text.splitlines()
    assert sorted(in_file) == sorted(output.text.splitlines() + rest.text.splitlines())
    beyond = server.http.get(f"/v1/batches/{batch.id}/output", params={"offset": 60})
    assert (beyond.text, beyond.headers["x-last-line"]) == ("", "60")
    assert server.http.get(f"/v1/batches/{batch.id}/output?offset=-1").status_code == 400
    assert server.http.get(f"/v1/batches/{batch.id}/output?offset=99999999999").status_code == 400


@every_store
def test_failed_lines_are_tried_again(server: Any, engine: Any) -> None:
    content = jsonl(engine.lines(5)).replace(b"\n", b"\r\n")
    batch = server.create(content, metadata={"night": "1"})
    engine.complete(engine.claim(), failing={"request-1", "request-3"})
    server.wait_for_end(batch.id)
    reply = _post(server, f"/{batch.id}/retry")
    assert reply.status_code == 200
    again = reply.json()
    assert again["trunkline"]["retry_of"] == batch.id
    assert again["metadata"] == {"night": "1"}
    engine.complete(engine.claim())
    done = server.wait_for_end(again["id"])
    assert (done.request_counts.total, done.request_counts.completed) == (2, 2)
    ids = [line["custom_id"] for line in server.results(done.output_file_id)]
    assert ids == ["request-1", "request-3"]
    reply = _post(server, f"/{again['id']}/retry")
    assert reply.status_code == 400
    assert "No line of batch" in reply.json()["error"]["message"]


def test_only_an_ended_batch_can_be_tried_again(server: Any, engine: Any) -> None:
    batch = server.create(jsonl(engine.lines(2)))
    claim = engine.claim()
    reply = _post(server, f"/{batch.id}/retry")
    assert reply.status_code == 409
    assert reply.json()["error"]["message"] == "Cannot retry a batch with status 'in_progress'."
    engine.answer(claim, limit=1)
    server.client.batches.cancel(batch.id)
    engine.work.release(claim)
    server.wait_for_end(batch.id)
    server.client.files.delete(batch.input_file_id)
    reply = _post(server, f"/{batch.id}/retry")
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "input_file_gone")


def test_cancelled_lines_are_tried_again(server: Any, engine: Any) -> None:
    batch = server.create(jsonl(engine.lines(3)))
    claim = engine.claim()
    engine.answer(claim, limit=1)
    server.client.batches.cancel(batch.id)
    engine.work.release(claim)
    server.wait_for_end(batch.id)
    again = _post(server, f"/{batch.id}/retry", **{"Idempotency-Key": "once"}).json()
    server.wait(again["id"], "in_progress")  # from here on nothing changes until it is claimed
    repeated = _post(server, f"/{batch.id}/retry", **{"Idempotency-Key": "once"}).json()
    assert repeated["id"] == again["id"]
    assert repeated == _get(server, again["id"])
    engine.complete(engine.claim())
    assert server.wait_for_end(again["id"]).request_counts.total == 2


def _get(server: Any, batch_id: str) -> dict[str, Any]:
    found: dict[str, Any] = server.http.get(f"/v1/batches/{batch_id}").json()
    return found


@every_store
def test_a_repeated_request_creates_one_batch(server: Any, engine: Any) -> None:
    file_id = server.upload(jsonl(engine.lines(1))).id
    body = {
        "input_file_id": file_id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    first = _post(server, "", body, **{"Idempotency-Key": "night-1"})
    second = _post(server, "", body, **{"Idempotency-Key": "night-1"})
    assert first.json()["id"] == second.json()["id"]
    other = _post(server, "", {**body, "metadata": {"a": "b"}}, **{"Idempotency-Key": "night-1"})
    assert other.status_code == 409
    assert other.headers["x-should-retry"] == "false"
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert _post(server, "", body).json()["id"] != first.json()["id"]
    bad = _post(server, "", body, **{"Idempotency-Key": "x" * 256})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "Idempotency-Key")
    for batch in server.client.batches.list():
        if batch.input_file_id == file_id:
            server.client.batches.cancel(batch.id)


@every_store
def test_pause_and_resume(server: Any, engine: Any) -> None:
    batch = server.create(jsonl(engine.lines(2)))
    server.wait(batch.id, "in_progress")
    paused = _post(server, f"/{batch.id}/pause").json()
    assert paused["status"] == "in_progress"
    assert paused["trunkline"]["paused_at"] >= batch.created_at
    assert engine.work.claim(engine.model, [engine.model], 0.0, 60) is None
    resumed = _post(server, f"/{batch.id}/resume").json()
    assert resumed["trunkline"]["paused_at"] is None
    engine.complete(engine.claim())
    server.wait_for_end(batch.id)
    for action in ("pause", "resume"):
        reply = _post(server, f"/{batch.id}/{action}")
        assert reply.status_code == 409
        assert f"Cannot {action} a batch" in reply.json()["error"]["message"]


@every_store
def test_priority(server: Any, engine: Any) -> None:
    batches = [server.create(jsonl(engine.lines(1))) for _ in range(2)]
    urgent = server.create(jsonl(engine.lines(1)), extra_body={"priority": 7})
    for batch in (*batches, urgent):
        server.wait(batch.id, "in_progress")
    assert _get(server, urgent.id)["trunkline"]["priority"] == 7
    assert _post(server, f"/{batches[1].id}", {"priority": 3}).json()["trunkline"]["priority"] == 3
    claimed = []
    for _ in range(3):
        claim = engine.claim()
        claimed.append(claim.batch_id)
        engine.complete(claim)
    assert claimed == [urgent.id, batches[1].id, batches[0].id]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_required_parameter"),
        ({"priority": "high"}, "invalid_type"),
        ({"priority": True}, "invalid_type"),
        ({"priority": 101}, "invalid_value"),
        ({"priority": -101}, "invalid_value"),
    ],
)
def test_wrong_priorities(server: Any, engine: Any, body: dict[str, Any], code: str) -> None:
    reply = _post(server, "/batch_none", body)
    assert reply.status_code == 400
    assert (reply.json()["error"]["code"], reply.json()["error"]["param"]) == (code, "priority")


@every_store
def test_progress(server: Any, engine: Any) -> None:
    batch = server.create(jsonl(engine.lines(4)))
    claim = engine.claim()
    engine.answer(claim, limit=3, failing={"request-1"})
    found = server.http.get(f"/v1/batches/{batch.id}/progress").json()
    assert (found["object"], found["batch_id"], found["status"]) == (
        *("batch.progress", batch.id),
        "in_progress",
    )
    assert sum(bucket["completed"] for bucket in found["buckets"]) == 2
    assert sum(bucket["failed"] for bucket in found["buckets"]) == 1
    assert sum(bucket["output_tokens"] for bucket in found["buckets"]) == 6
    assert found["requests_per_second"] > 0
    assert found["eta_seconds"] == pytest.approx(1 / found["requests_per_second"])
    (group,) = found["errors"]
    assert (group["count"], group["lines"], group["status_code"]) == (1, [2], 400)
    assert group["message"] == "too warm"
    engine.complete(claim)
    server.wait_for_end(batch.id)
    found = server.http.get(f"/v1/batches/{batch.id}/progress").json()
    assert found["eta_seconds"] is None


def test_progress_before_anything_runs(server: Any, engine: Any) -> None:
    batch = server.create(b"not json")
    server.wait_for_end(batch.id)
    found = server.http.get(f"/v1/batches/{batch.id}/progress").json()
    assert (found["elapsed_seconds"], found["buckets"], found["errors"]) == (None, [], [])


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


@every_store
def test_events_until_the_end(server: Any, engine: Any) -> None:
    batch = server.create(jsonl(engine.lines(3)))
    claim = engine.claim()
    seen = []
    with httpx.stream(
        "GET", f"{server.base_url}/v1/batches/{batch.id}/events", timeout=HANG_SECONDS
    ) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for event in _events(stream.iter_lines()):
            seen.append((event["status"], event["request_counts"]["completed"]))
            if len(seen) == 1:
                engine.answer(claim, limit=1)
            elif len(seen) == 2:
                engine.complete(claim)
    assert seen[0] == ("in_progress", 0)
    assert seen[1] == ("in_progress", 1)
    assert seen[-1] == ("completed", 3)


def test_a_watcher_does_not_hold_up_the_end_of_the_server(make_server: Any) -> None:
    server = make_server()
    batch = server.create(b'{"a": 1}')
    server.client.batches.retrieve(batch.id)
    waiting = server.create(
        jsonl(
            [
                {
                    "custom_id": "a",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": {"model": "tiny", "messages": [{"role": "user", "content": "x"}]},
                }
            ]
        )
    )
    server.wait(waiting.id, "in_progress")
    first = threading.Event()

    def watch() -> None:
        with httpx.stream(
            "GET", f"{server.base_url}/v1/batches/{waiting.id}/events", timeout=HANG_SECONDS
        ) as stream:
            for _ in stream.iter_lines():
                first.set()

    thread = threading.Thread(target=watch)
    thread.start()
    assert first.wait(HANG_SECONDS)
    assert server.stop() == 0
    thread.join(HANG_SECONDS)
    assert not thread.is_alive()


def test_engines(server: Any, engine: Any) -> None:
    engine.work.heartbeat(f"engine-of-{engine.model}", {"num_running": 3}, [], time.time(), 60)
    page = server.http.get("/v1/engines").json()
    (found,) = (e for e in page["data"] if e["model"] == engine.model)
    assert found["object"] == "engine"
    assert found["figures"] == {"num_running": 3}
    assert (found["device"], found["dtype"], found["max_model_tokens"]) == ("cpu", "float32", 2048)


def test_a_stock_client_is_not_disturbed(server: Any, engine: Any) -> None:
    batch = server.create(jsonl(engine.lines(1)))
    again = server.client.batches.retrieve(batch.id)
    assert isinstance(again, openai.types.Batch)
    assert again.status in {status.value for status in BatchStatus}
    engine.complete(engine.claim())
    server.wait_for_end(batch.id)
