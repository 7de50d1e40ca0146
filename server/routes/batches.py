"""Batches: create, retrieve, list, cancel."""

from __future__ import annotations

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request

from trunkline.server.errors import ApiError
from trunkline.server.new_batch import parse_new_batch
from trunkline.server.routes.lists import Cursor
from trunkline.server.state import State, StateOf
from trunkline.server.wire import batch_object, page_object

router = APIRouter(prefix="/v1/batches")

# The longest metadata take 40 kB, or some times that when every character is escaped.
MAX_BODY_BYTES = 1024 * 1024


@router.post("")
async def create(request: Request, state: StateOf) -> dict[str, Any]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(
                413,
                f"The body of this request is longer than the maximum of {MAX_BODY_BYTES} bytes.",
            )
    return await run_sync(_create, state, body)


def _create(state: State, body: bytes) -> dict[str, Any]:
    now = state.now()
    new = parse_new_batch(body, state.files, now + state.settings.window_seconds)
    batch = state.batches.create(new, now)
    state.wake_lifecycle()
    return batch_object(batch)


@router.get("")
def list_batches(
    state: StateOf,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Cursor = None,
) -> dict[str, Any]:
    return page_object(state.batches.list(limit, after), batch_object)


@router.get("/{batch_id}")
def retrieve(batch_id: str, state: StateOf) -> dict[str, Any]:
    return batch_object(state.batches.get(batch_id))


@router.post("/{batch_id}/cancel")
def cancel(batch_id: str, state: StateOf) -> dict[str, Any]:
    batch = state.batches.cancel(batch_id, state.now())
    state.wake_lifecycle()
    return batch_object(batch)


@router.get("/{batch_id}/plan")
def plan(batch_id: str, state: StateOf) -> dict[str, Any]:
    """How the engine has planned the batch, and how that compares with what happened."""
    batch = state.batches.get(batch_id)
    ended_at = batch.finalizing_at or batch.cancelling_at or state.now()
    elapsed = None if batch.in_progress_at is None else ended_at - batch.in_progress_at
    return {
        "object": "batch.plan",
        "batch_id": batch_id,
        "status": batch.status.value,
        "actual_seconds": elapsed,
        "actual_saved_share": (
            batch.num_cached_tokens / batch.num_prompt_tokens if batch.num_prompt_tokens else None
        ),
        "plan": state.batches.plan(batch_id),
    }
