"""Batches: create, retrieve, list, cancel; and what OpenAI's API does not have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from trunkline.server.errors import missing_parameter
from trunkline.server.events import batch_events
from trunkline.server.json_body import read_body, read_object
from trunkline.server.new_batch import (
    COMPLETION_WINDOW,
    MAX_METADATA_PAIRS,
    MAX_METADATA_VALUE,
    MAX_PRIORITY,
    idempotency,
    parse_new_batch,
    parse_priority,
)
from trunkline.server.openapi import EXPIRES_AFTER, json_body
from trunkline.server.retry import retry_failed
from trunkline.server.routes.lists import Cursor
from trunkline.server.scope import Scope, ScopeOf
from trunkline.server.state import State, StateOf
from trunkline.server.wire import (
    BatchObject,
    BatchPlan,
    BatchProgress,
    ListObject,
    batch_object,
    bucket_object,
    error_group_object,
    page_object,
)
from trunkline.store.batch_file import output_line
from trunkline.store.endpoints import ENDPOINTS
from trunkline.store.errors import NotFound
from trunkline.store.records import BatchRecord
from trunkline.store.states import BatchStatus, is_terminal

router = APIRouter(prefix="/v1/batches")

# Positions are integers of 32 bits in the database.
MAX_OFFSET = 2**31 - 1

# Points of a batch's pace over time.
MAX_BUCKETS = 120
# The pace that the time left is told from.
RECENT_SECONDS = 60


class JsonLines(StreamingResponse):
    media_type = "application/jsonl"


class EventStream(StreamingResponse):
    media_type = "text/event-stream"


# An event of a stream; its data is a batch object as JSON text.
EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"const": "batch"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key")]


PRIORITY = {"type": "integer", "minimum": -MAX_PRIORITY, "maximum": MAX_PRIORITY, "default": 0}


@router.post(
    "",
    openapi_extra=json_body(
        {
            "input_file_id": {"type": "string"},
            "endpoint": {"enum": list(ENDPOINTS)},
            "completion_window": {"const": COMPLETION_WINDOW},
            "metadata": {
                "type": ["object", "null"],
                "maxProperties": MAX_METADATA_PAIRS,
                "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE},
            },
            "output_expires_after": EXPIRES_AFTER,
            "priority": PRIORITY,
        },
        ["input_file_id", "endpoint", "completion_window"],
    ),
)
async def create(
    request: Request, state: StateOf, scope: ScopeOf, idempotency_key: IdempotencyKey = None
) -> BatchObject:
    body = await read_body(request)
    return await run_sync(_create, state, scope, body, idempotency_key)


def _create(state: State, scope: Scope, body: bytes, idempotency_key: str | None) -> BatchObject:
    now = state.now()
    expires_at = now + state.settings.window_seconds
    new = parse_new_batch(body, scope.files, expires_at, idempotency_key)
    batch = scope.batches.create(new, now)
    state.wake_lifecycle()
    return batch_object(batch)


@router.get("")
def list_batches(
    scope: ScopeOf,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Cursor = None,
) -> ListObject[BatchObject]:
    return page_object(scope.batches.list(limit, after), batch_object)


@router.get("/{batch_id}")
async def retrieve(batch_id: str, state: StateOf, scope: ScopeOf) -> BatchObject:
    return batch_object(await _batch(state, scope, batch_id))


async def _batch(state: State, scope: Scope, batch_id: str) -> BatchRecord:
    """The batch, for those who ask again and again: they share their queries."""
    batch = await state.batches.get((scope.project.id, batch_id))
    if batch is None:
        raise NotFound("batch", batch_id)
    return batch


@router.post("/{batch_id}", openapi_extra=json_body({"priority": PRIORITY}, ["priority"]))
async def update(batch_id: str, request: Request, scope: ScopeOf) -> BatchObject:
    """Change the priority of a batch that has not ended."""
    body = await read_object(request)
    if body.get("priority") is None:
        raise missing_parameter("priority")
    priority = parse_priority(body["priority"])
    return batch_object(await run_sync(scope.batches.set_priority, batch_id, priority))


@router.post("/{batch_id}/cancel")
def cancel(batch_id: str, state: StateOf, scope: ScopeOf) -> BatchObject:
    batch = scope.batches.cancel(batch_id, state.now())
    state.wake_lifecycle()
    return batch_object(batch)


@router.post("/{batch_id}/pause")
def pause(batch_id: str, state: StateOf, scope: ScopeOf) -> BatchObject:
    """Let no engine work on the batch. What is answered stays; its window goes on."""
    return batch_object(scope.batches.pause(batch_id, state.now()))


@router.post("/{batch_id}/resume")
def resume(batch_id: str, scope: ScopeOf) -> BatchObject:
    """Let engines work on a paused batch again."""
    return batch_object(scope.batches.resume(batch_id))


@router.post("/{batch_id}/retry")
def retry(
    batch_id: str, state: StateOf, scope: ScopeOf, idempotency_key: IdempotencyKey = None
) -> BatchObject:
    """A new batch of the lines of this one that were not answered."""
    key = idempotency(idempotency_key, f"retry of {batch_id}".encode())
    batch = retry_failed(state, scope, batch_id, key)
    state.wake_lifecycle()
    return batch_object(batch)


@router.get("/{batch_id}/output", response_class=JsonLines)
def output(
    batch_id: str,
    state: StateOf,
    scope: ScopeOf,
    offset: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
) -> JsonLines:
    """The answers that are there by now, as lines of the output file; see `_results`."""
    return _results(state, scope, batch_id, offset, is_success=True)


@router.get("/{batch_id}/errors", response_class=JsonLines)
def errors(
    batch_id: str,
    state: StateOf,
    scope: ScopeOf,
    offset: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
) -> JsonLines:
    """The lines that have failed by now, as lines of the error file; see `_results`."""
    return _results(state, scope, batch_id, offset, is_success=False)


def _results(
    state: State, scope: Scope, batch_id: str, offset: int, *, is_success: bool
) -> JsonLines:
    """Results in the order in which they were committed.

    `X-Last-Line` is the offset to go on from, `X-Incomplete` says whether more may come.
    """
    # In this order: what comes between the two is there for the next call.
    batch = scope.batches.get(batch_id)
    last = max(state.outcomes.last_position(batch_id), offset)

    def lines() -> Iterator[bytes]:
        for row in state.outcomes.by_position(batch_id, offset, last, is_success=is_success):
            yield output_line(row.custom_id, row.outcome, row.request_id)

    return JsonLines(
        lines(),
        headers={
            "X-Incomplete": "false" if is_terminal(batch.status) else "true",
            "X-Last-Line": str(last),
        },
    )


@router.get("/{batch_id}/progress")
def progress(batch_id: str, state: StateOf, scope: ScopeOf) -> BatchProgress:
    """The batch's pace over time, the time left, and what went wrong so far."""
    batch = scope.batches.get(batch_id)
    now = state.now()
    start = batch.in_progress_at or batch.created_at
    end = max(_ended_at(batch) or now, start)
    buckets = state.progress.buckets(batch_id, start, end, MAX_BUCKETS)
    recent = state.progress.buckets(batch_id, max(start, end - RECENT_SECONDS), end, 1)
    seconds = max(1, min(RECENT_SECONDS, end - start))
    rate = sum(b.num_completed + b.num_failed for b in recent) / seconds
    num_left = batch.num_total - batch.num_completed - batch.num_failed
    is_running = batch.status is BatchStatus.IN_PROGRESS and batch.paused_at is None
    return {
        "object": "batch.progress",
        "batch_id": batch_id,
        "status": batch.status.value,
        "elapsed_seconds": None if batch.in_progress_at is None else end - start,
        "eta_seconds": num_left / rate if is_running and rate else None,
        "requests_per_second": rate if recent else None,
        "output_tokens_per_second": (
            sum(b.num_output_tokens for b in recent) / seconds if recent else None
        ),
        "buckets": [bucket_object(bucket) for bucket in buckets],
        "errors": [error_group_object(group) for group in state.progress.error_groups(batch_id)],
    }


@router.get(
    "/{batch_id}/events",
    response_class=EventStream,
    responses={200: {"content": {EventStream.media_type: {"schema": EVENT}}}},
)
async def events(batch_id: str, state: StateOf, scope: ScopeOf) -> EventStream:
    """Server-sent events of the type `batch`, each with the whole batch, until it has ended."""

    async def read() -> BatchRecord:
        return await _batch(state, scope, batch_id)

    first = await read()
    return EventStream(
        batch_events(first, read, state.stopping),
        # A proxy that collects the stream before it passes it on would defeat it.
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )


@router.get("/{batch_id}/plan")
def plan(batch_id: str, state: StateOf, scope: ScopeOf) -> BatchPlan:
    """How the engine has planned the batch, and how that compares with what happened."""
    batch = scope.batches.get(batch_id)
    elapsed = None
    if batch.in_progress_at is not None:
        elapsed = (_ended_at(batch) or state.now()) - batch.in_progress_at
    return {
        "object": "batch.plan",
        "batch_id": batch_id,
        "status": batch.status.value,
        "actual_seconds": elapsed,
        "actual_saved_share": (
            batch.num_cached_tokens / batch.num_prompt_tokens if batch.num_prompt_tokens else None
        ),
        "plan": scope.batches.plan(batch_id),
    }


def _ended_at(batch: BatchRecord) -> int | None:
    """When engines stopped working on a batch."""
    return batch.finalizing_at or batch.cancelling_at or batch.failed_at
