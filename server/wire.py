"""OpenAI's objects on the wire. Every key is always there; null where there is no value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from trunkline.store.records import BatchRecord, FileRecord, Page

T = TypeVar("T")


def file_object(file: FileRecord) -> dict[str, Any]:
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


def batch_object(batch: BatchRecord) -> dict[str, Any]:
    errors = None
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
    }


def model_object(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "trunkline"}


def page_object(page: Page[T], shown: Callable[[T], dict[str, Any]]) -> dict[str, Any]:
    return list_object([shown(item) for item in page.items], has_more=page.has_more)


def list_object(data: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": list(data),
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
