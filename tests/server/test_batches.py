"""Batches from their creation to their files, against an engine without a model."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import update

from tests.server.stores import every_store, on_sqlite
from tests.support import wait_for
from trunkline.store.schema import batches, files

CHAT = "/v1/chat/completions"

BATCH_KEYS = {
    *("id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window"),
    *("status", "output_file_id", "error_file_id", "created_at", "in_progress_at", "expires_at"),
    *("finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at"),
    *("cancelled_at", "request_counts", "usage", "metadata", "trunkline"),
}


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def counts(total: int, completed: int, failed: int) -> dict[str, int]:
    return {"total": total, "completed": completed, "failed": failed}


def check_each_line_once(server: Any, batch: Any, lines: list[dict[str, Any]]) -> None:
    """Output and error file together hold each line of the input exactly once."""
    output, errors = server.results(batch.output_file_id), server.results(batch.error_file_id)
    found = sorted(result["custom_id"] for result in output + errors)
    assert found == sorted(line["custom_id"] for line in lines)
    assert batch.request_counts.total == len(lines)
    assert batch.request_counts.completed == len(output)
    assert batch.request_counts.failed == sum(r["response"] is not None for r in errors)
    identities = {result["id"] for result in output + errors}
    assert len(identities) == len(lines)
    assert all(identity.startswith("batch_req_") for identity in identities)
    assert all(set(r) == {"id", "custom_id", "response", "error"} for r in output + errors)


def check_expiry(file: Any, batch: Any, seconds: int) -> None:
    """The file lives for so long from the time at which it was written."""
    assert batch.finalizing_at + seconds <= file.expires_at <= file.created_at + seconds


@every_store
def test_from_validating_to_completed(server: Any, engine: Any) -> None:
    lines = engine.lines(5)
    before = int(time.time())
    created = server.create(jsonl(lines), metadata={"team": "grün"})
    assert created.id.startswith("batch_")
    assert (created.status, created.endpoint) == ("validating", CHAT)
    assert (created.completion_window, created.metadata) == ("24h", {"team": "grün"})
    assert before <= created.created_at <= time.time()
    assert created.expires_at == created.created_at + 86_400
    assert created.request_counts.to_dict() == counts(0, 0, 0)
    assert set(server.http.get(f"/v1/batches/{created.id}").json()) == BATCH_KEYS

    batch = server.wait(created.id, "in_progress")
    assert batch.request_counts.total == 5
    assert batch.model == engine.model
    assert batch.in_progress_at >= batch.created_at
    assert batch.output_file_id is None

    claim = engine.claim()
    engine.answer(claim, 2)
    batch = server.client.batches.retrieve(created.id)
    assert batch.status == "in_progress"
    assert batch.request_counts.to_dict() == counts(5, 2, 0)
    assert batch.usage.to_dict() == {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 8},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 26,
    }

    engine.complete(claim, failing=["request-3"])
    batch = server.wait_for_end(created.id)
    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == counts(5, 4, 1)
    assert batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    for name in ("failed_at", "expired_at", "cancelling_at", "cancelled_at", "errors"):
        assert getattr(batch, name) is None
    check_each_line_once(server, batch, lines)

    for result in server.results(batch.output_file_id):
        identity, response = result["id"], result["response"]
        assert result["error"] is None
        assert (response["status_code"], response["request_id"]) == (200, identity)
        message = response["body"]["choices"][0]["message"]
        assert message["content"] == f"answer to {result['custom_id']}: grüß Gott"
    (failure,) = server.results(batch.error_file_id)
    error = {
        "message": "too warm",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": None,
    }
    assert failure == {
        "id": failure["id"],
        "custom_id": "request-3",
        "response": {"status_code": 400, "request_id": failure["id"], "body": {"error": error}},
        "error": None,
    }
    for file_id, name in ((batch.output_file_id, "output"), (batch.error_file_id, "error")):
        file = server.client.files.retrieve(file_id)
        assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_{name}.jsonl")
        check_expiry(file, batch, 2_592_000)
        assert file_id in {f.id for f in server.client.files.list(purpose="batch_output")}


def test_nothing_failed_means_no_error_file(server: Any, engine: Any) -> None:
    batch = server.create(jsonl(engine.lines(1)))
    engine.complete(engine.claim())
    batch = server.wait_for_end(batch.id)
    assert batch.output_file_id is not None
    assert batch.error_file_id is None


def test_every_line_failing_is_completed_without_an_output_file(server: Any, engine: Any) -> None:
    lines = engine.lines(3)
    batch = server.create(jsonl(lines))
    engine.complete(engine.claim(), failing=[line["custom_id"] for line in lines])
    batch = server.wait_for_end(batch.id)
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert batch.request_counts.to_dict() == counts(3, 0, 3)
    check_each_line_once(server, batch, lines)


def test_the_life_of_the_output_file(server: Any, engine: Any) -> None:
    batch = server.create(
        jsonl(engine.lines(2)), output_expires_after={"anchor": "created_at", "seconds": 3600}
    )
    engine.complete(engine.claim(), failing=["request-0"])
    batch = server.wait_for_end(batch.id)
    for file_id in (batch.output_file_id, batch.error_file_id):
        file = server.client.files.retrieve(file_id)
        check_expiry(file, batch, 3600)


def test_completions_are_an_endpoint_too(server: Any, engine: Any) -> None:
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": engine.model, "prompt": "Hi", "stream": False},
    }
    batch = server.create(jsonl([line]), "/v1/completions")
    engine.complete(engine.claim())
    batch = server.wait_for_end(batch.id)
    assert (batch.status, batch.endpoint) == ("completed", "/v1/completions")
    assert server.errors(jsonl([line])) == [("invalid_url", 1, "url")]


def test_a_batch_for_the_model_whose_engine_is_not_there_yet(server: Any, engine: Any) -> None:
    line = engine.line("a", model="tiny")
    assert server.wait(server.create(jsonl([line])).id, "in_progress").model == "tiny"


def test_cancelled_while_it_is_validated(server: Any, engine: Any) -> None:
    lines = engine.lines(3000)
    batch = server.create(jsonl(lines))
    assert server.client.batches.cancel(batch.id).status in {"cancelling", "cancelled"}
    batch = server.wait_for_end(batch.id)
    assert (batch.status, batch.output_file_id) == ("cancelled", None)
    written = server.results(batch.error_file_id)
    assert len(written) == batch.request_counts.total == 3000
    assert {result["error"]["code"] for result in written} == {"batch_cancelled"}
    assert server.client.batches.cancel(batch.id).status == "cancelled"


@every_store
def test_cancelled_in_progress(server: Any, engine: Any) -> None:
    lines = engine.lines(6)
    batch = server.create(jsonl(lines))
    claim = engine.claim()
    engine.answer(claim, 3, failing=["request-1"])
    answered = server.client.batches.cancel(batch.id)
    assert answered.status == "cancelling"
    assert answered.cancelling_at is not None
    assert server.client.batches.cancel(batch.id).status == "cancelling"
    # The engine may still commit what was under way when it was told.
    engine.answer(claim, 1)
    engine.work.release(claim)
    batch = server.wait_for_end(batch.id)
    assert batch.status == "cancelled"
    assert batch.cancelling_at <= batch.cancelled_at
    assert batch.request_counts.to_dict() == counts(6, 3, 1)
    check_each_line_once(server, batch, lines)
    errors = {r["custom_id"]: r for r in server.results(batch.error_file_id)}
    assert errors["request-1"]["response"]["status_code"] == 400
    for custom_id in ("request-4", "request-5"):
        assert errors[custom_id]["response"] is None
        assert errors[custom_id]["error"] == {
            "code": "batch_cancelled",
            "message": "This request was not executed because the batch was cancelled.",
        }
    assert server.client.batches.cancel(batch.id) == batch


def test_cancelled_with_everything_done(server: Any, engine: Any) -> None:
    lines = engine.lines(2)
    batch = server.create(jsonl(lines))
    claim = engine.claim()
    engine.answer(claim)
    server.client.batches.cancel(batch.id)
    engine.work.release(claim)
    batch = server.wait_for_end(batch.id)
    assert (batch.status, batch.error_file_id) == ("cancelled", None)
    check_each_line_once(server, batch, lines)


def count_calls(server: Any, call: Callable[[openai.OpenAI], Any]) -> tuple[int, Exception]:
    """How many requests the official client sends for a call that fails, and its error."""
    requests: list[httpx.Request] = []
    with httpx.Client(event_hooks={"request": [requests.append]}) as http_client:
        client = openai.OpenAI(
            base_url=f"{server.base_url}/v1", api_key="unused", http_client=http_client
        )
        with pytest.raises(openai.ConflictError) as caught:
            call(client)
    return len(requests), caught.value


def test_what_is_through_cannot_be_cancelled(server: Any, engine: Any) -> None:
    completed = server.create(jsonl(engine.lines(1)))
    engine.complete(engine.claim())
    failed = server.create(b"{}\n")
    for batch, status in ((completed, "completed"), (failed, "failed")):
        assert server.wait_for_end(batch.id).status == status
        num_calls, error = count_calls(
            server, lambda client, identity=batch.id: client.batches.cancel(identity)
        )
        assert num_calls == 1
        assert isinstance(error, openai.ConflictError)
        assert error.body == {
            "message": f"Cannot cancel a batch with status '{status}'.",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
        assert server.client.batches.retrieve(batch.id).status == status


def test_deleting_an_input_in_use_is_tried_once(server: Any, engine: Any) -> None:
    batch = server.create(jsonl(engine.lines(1)))
    num_calls, _ = count_calls(server, lambda client: client.files.delete(batch.input_file_id))
    assert num_calls == 1


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/json"}])
def test_cancel_needs_no_body(server: Any, engine: Any, headers: dict[str, str]) -> None:
    batch = server.create(jsonl(engine.lines(1)))
    assert server.http.post(f"/v1/batches/{batch.id}/cancel", headers=headers).status_code == 200


def move(server: Any, table: Any, ids: list[str], **times: int) -> None:
    """Give batches or files other times, as if these had gone by."""
    with server.database.write() as connection:
        connection.execute(update(table).where(table.c.id.in_(ids)).values(**times))


@every_store
def test_expiry(server: Any, engine: Any) -> None:
    lines = engine.lines(5)
    half, none, whole = (server.create(jsonl(lines)) for _ in range(3))
    for batch in (half, none, whole):
        server.wait(batch.id, "in_progress")
    for _ in range(3):
        claim = engine.claim()
        if claim.batch_id == half.id:
            engine.answer(claim, 2)
        elif claim.batch_id == whole.id:
            engine.complete(claim)
    assert server.wait_for_end(whole.id).status == "completed"
    end = int(time.time())
    move(server, batches, [half.id, none.id, whole.id], expires_at=end)
    for batch, num_done in ((half, 2), (none, 0)):
        ended = server.wait_for_end(batch.id)
        assert ended.status == "expired"
        assert ended.expired_at >= ended.expires_at == end
        assert ended.completed_at is None
        assert ended.request_counts.to_dict() == counts(5, num_done, 0)
        assert (ended.output_file_id is None) == (num_done == 0)
        check_each_line_once(server, ended, lines)
        for result in server.results(ended.error_file_id):
            assert result["response"] is None
            assert result["error"] == {
                "code": "batch_expired",
                "message": "This request could not be executed before the completion window "
                "expired.",
            }
        assert server.http.post(f"/v1/batches/{batch.id}/cancel").status_code == 409
    assert server.client.batches.retrieve(whole.id).status == "completed"


@on_sqlite
def test_expired_files_are_deleted(
    make_server: Callable[..., Any], make_engine: Callable[..., Any]
) -> None:
    server = make_server(
        window_seconds=1000, batch_file_expires_seconds=2000, output_expires_seconds=3000
    )
    engine = make_engine(server)
    unused = server.upload(b"{}\n")
    assert unused.expires_at == unused.created_at + 2000
    batch, waiting = (server.create(jsonl(engine.lines(1))) for _ in range(2))
    assert batch.expires_at == batch.created_at + 1000
    claims = {claim.batch_id: claim for claim in (engine.claim(), engine.claim())}
    engine.complete(claims[batch.id])
    batch = server.wait_for_end(batch.id)
    check_expiry(server.client.files.retrieve(batch.output_file_id), batch, 3000)
    gone = [unused.id, batch.input_file_id, batch.output_file_id]
    move(server, files, [*gone, waiting.input_file_id], expires_at=int(time.time()))
    # The sweep runs once a minute, and first when the server starts.
    server.stop()
    server.start()
    wait_for(lambda: len(server.blobs()) == 1)
    for file_id in gone:
        assert server.http.get(f"/v1/files/{file_id}").status_code == 404
    # The input of a batch that is not through stays, however old it is.
    assert server.client.files.retrieve(waiting.input_file_id).bytes > 0
    assert server.client.batches.retrieve(batch.id).output_file_id == batch.output_file_id


@every_store
def test_lists_have_pages(server: Any) -> None:
    file = server.upload(b"{}\n")
    request = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    first, *others = [server.client.batches.create(**request) for _ in range(12)]
    made = [first.id, *(batch.id for batch in others)]
    # All but the last in the same second.
    move(server, batches, made[:-1], created_at=first.created_at)
    for limit in (1, 5, 12, 100):
        found = []
        for batch in server.client.batches.list(limit=limit):
            found.append(batch.id)
            if len(found) == 14:
                break
        assert found[:12] == made[::-1]
        assert len(set(found)) == len(found)
    page = server.http.get("/v1/batches", params={"limit": 2}).json()
    assert (page["object"], page["has_more"]) == ("list", True)
    assert (page["first_id"], page["last_id"]) == (made[11], made[10])
    everything = [batch.id for batch in server.client.batches.list(limit=50)]
    assert len(everything) == len(set(everything))
    last = server.http.get("/v1/batches", params={"after": everything[-1]}).json()
    assert (last["data"], last["has_more"]) == ([], False)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=many", "limit"),
        ("after=batch_unknown", "after"),
        ("after=%00", "after"),
    ],
)
def test_wrong_queries_of_the_list(server: Any, query: str, param: str) -> None:
    reply = server.http.get(f"/v1/batches?{query}")
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert reply.json()["error"]["code"] == "invalid_value"


def test_a_batch_that_is_not_there(server: Any) -> None:
    for call in (server.client.batches.retrieve, server.client.batches.cancel):
        with pytest.raises(openai.NotFoundError, match=re.escape("No batch found with id 'b_1'.")):
            call("b_1")
