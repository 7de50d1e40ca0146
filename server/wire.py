"""OpenAI's objects on the wire. Every key is always there; null where there is no value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

# Pydantic, which describes these types in the OpenAPI document, cannot read Python 3.11's own.
from typing_extensions import TypedDict

from trunkline.store.progress import Bucket, ErrorGroup
from trunkline.store.records import BatchRecord, EngineRecord, FileRecord, Page

Record = TypeVar("Record")
Shown = TypeVar("Shown")


class ListObject(TypedDict, Generic[Shown]):
    """A page of a list."""

    object: Literal["list"]
    data: list[Shown]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileObject(TypedDict):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str
    status_details: None


class DeletedFile(TypedDict):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class BatchError(TypedDict):
    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(TypedDict):
    object: Literal["list"]
    data: list[BatchError]


class RequestCounts(TypedDict):
    total: int
    completed: int
    failed: int


class InputDetails(TypedDict):
    cached_tokens: int


class OutputDetails(TypedDict):
    reasoning_tokens: int


class Usage(TypedDict):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class BatchExtras(TypedDict):
    """What OpenAI's object does not have."""

    priority: int
    paused_at: int | None
    retry_of: str | None


class BatchObject(TypedDict):
    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: Usage
    metadata: dict[str, str] | None
    trunkline: BatchExtras


class BatchPlan(TypedDict):
    """How the engine has planned a batch, and how that compares with what happened."""

    object: Literal["batch.plan"]
    batch_id: str
    status: str
    actual_seconds: int | None
    actual_saved_share: float | None
    plan: dict[str, Any] | None  # see engine/plan_summary.py


class BucketObject(TypedDict):
    """What was committed in a span of time."""

    start: int
    seconds: int
    completed: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class ErrorGroupObject(TypedDict):
    """Lines that failed alike; `lines` are the first of them."""

    code: str | None
    status_code: int | None
    message: str
    count: int
    lines: list[int]


class BatchProgress(TypedDict):
    """A batch's pace over time, the time left, and what went wrong so far."""

    object: Literal["batch.progress"]
    batch_id: str
    status: str
    elapsed_seconds: int | None
    eta_seconds: float | None
    requests_per_second: float | None
    output_tokens_per_second: float | None
    buckets: list[BucketObject]
    errors: list[ErrorGroupObject]


class EngineObject(TypedDict):
    id: str
    object: Literal["engine"]
    model: str
    device: str
    dtype: str
    started_at: int
    heartbeat_at: float
    max_model_tokens: int
    figures: dict[str, Any]


class ModelObject(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


def file_object(file: FileRecord) -> FileObject:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def batch_object(batch: BatchRecord) -> BatchObject:
    errors: BatchErrors | None = None
    if batch.errors:
        errors = {
            "object": "list",
            "data": [
                {"code": e.code, "line": e.line, "message": e.message, "param": e.param}
                for e in batch.errors
            ],
        }
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": errors,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status.value,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        "in_progress_at": batch.in_progress_at,
        "expires_at": batch.expires_at,
        "finalizing_at": batch.finalizing_at,
        "completed_at": batch.completed_at,
        "failed_at": batch.failed_at,
        "expired_at": batch.expired_at,
        "cancelling_at": batch.cancelling_at,
        "cancelled_at": batch.cancelled_at,
        "request_counts": {
            "total": batch.num_total,
            "completed": batch.num_completed,
            "failed": batch.num_failed,
        },
        "usage": {
            "input_tokens": batch.num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": batch.num_cached_tokens},
            "output_tokens": batch.num_output_tokens,
            "output_tokens_details": {"reasoning_tokens": batch.num_reasoning_tokens},
            "total_tokens": batch.num_prompt_tokens + batch.num_output_tokens,
        },
        "metadata": batch.metadata,
        "trunkline": {
            "priority": batch.priority,
            "paused_at": batch.paused_at,
            "retry_of": batch.retry_of,
        },
    }


def bucket_object(bucket: Bucket) -> BucketObject:
    return {
        "start": bucket.start,
        "seconds": bucket.seconds,
        "completed": bucket.num_completed,
        "failed": bucket.num_failed,
        "prompt_tokens": bucket.num_prompt_tokens,
        "cached_tokens": bucket.num_cached_tokens,
        "output_tokens": bucket.num_output_tokens,
    }


def error_group_object(group: ErrorGroup) -> ErrorGroupObject:
    return {
        "code": group.code,
        "status_code": group.status_code,
        "message": group.message,
        "count": group.count,
        "lines": group.lines,
    }


def engine_object(engine: EngineRecord) -> EngineObject:
    return {
        "id": engine.name,
        "object": "engine",
        "model": engine.model,
        "device": engine.device,
        "dtype": engine.dtype,
        "started_at": engine.started_at,
        "heartbeat_at": engine.heartbeat_at,
        "max_model_tokens": engine.max_model_tokens,
        "figures": engine.figures,
    }


def model_object(name: str, created: int) -> ModelObject:
    return {"id": name, "object": "model", "created": created, "owned_by": "trunkline"}


def page_object(page: Page[Record], shown: Callable[[Record], Shown]) -> ListObject[Shown]:
    return list_object([shown(item) for item in page.items], has_more=page.has_more)


def list_object(data: Sequence[Shown], *, has_more: bool) -> ListObject[Shown]:
    """A page of objects, each of which has an `id`."""
    ids: list[str] = [item["id"] for item in data]  # type: ignore[index]  # they all have
    return {
        "object": "list",
        "data": list(data),
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": has_more,
    }
