"""Errors of the API, and the one shape that all of them have on the wire.

{"error": {"message": …, "type": …, "param": …, "code": …}}
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from trunkline.store.blobs import BlobsUnavailable
from trunkline.store.errors import (
    IdempotencyConflict,
    IllegalTransition,
    InUse,
    NotFound,
    UnknownCursor,
)
from trunkline.store.json_types import json_type

logger = logging.getLogger(__name__)

INVALID_REQUEST = "invalid_request_error"


class ApiError(Exception):
    """An error that is told to the client.

    Attributes:
        status_code: HTTP status.
        message: what was given and what is allowed.
        param: the parameter at fault.
        code: a short identifier.
        kind: the error's type on the wire.
        headers: of the reply.
    """

    def __init__(
        self,
        status_code: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID_REQUEST,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind
        self.headers = dict(headers or {})


def missing_parameter(name: str) -> ApiError:
    return ApiError(
        400, f"Missing required parameter: '{name}'.", name, "missing_required_parameter"
    )


def invalid_type(name: str, expected: str, given: object) -> ApiError:
    return ApiError(
        400,
        f"Invalid type for '{name}': expected {expected}, but got {json_type(given)} instead.",
        name,
        "invalid_type",
    )


def invalid_value(name: str, message: str) -> ApiError:
    return ApiError(400, message, name, "invalid_value")


def error_response(error: ApiError) -> JSONResponse:
    # The official clients repeat a request on 409, which can never help here.
    headers = {"x-should-retry": "false"} if error.status_code == 409 else {}
    return JSONResponse(error_body(error), error.status_code, headers | error.headers)


def error_body(error: ApiError) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }


def internal_error() -> ApiError:
    return ApiError(
        500, "The server had an error while processing your request.", kind="server_error"
    )


def install_error_handlers(app: FastAPI) -> None:
    """Give every error of `app` the one shape."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(DataError, _on_data_error)
    app.add_exception_handler(BlobsUnavailable, _on_blobs_unavailable)
    for kind in (NotFound, UnknownCursor, IllegalTransition, IdempotencyConflict, InUse):
        app.add_exception_handler(kind, _on_store_error)


async def _on_api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == 404:
        message = f"Invalid URL ({request.method} {request.url.path})"
    elif error.status_code == 405:
        message = f"Not allowed to {request.method} on {request.url.path}."
    response = error_response(ApiError(error.status_code, message))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _on_validation_error(_: Request, error: Exception) -> JSONResponse:
    """A query parameter of the wrong type or out of range."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return error_response(
        invalid_value(name, f"Invalid value for '{name}': {first['msg']}, got {first['input']!r}.")
    )


async def _on_data_error(_: Request, __: Exception) -> JSONResponse:
    """PostgreSQL cannot even look for a NUL character."""
    return error_response(
        ApiError(400, "A value in this request holds a NUL character, which is not allowed.")
    )


async def _on_blobs_unavailable(_: Request, error: Exception) -> JSONResponse:
    logger.error("the blobs cannot be reached: %s", error)
    return error_response(
        ApiError(
            503,
            "The storage of files cannot be reached at the moment. Please try again later.",
            kind="server_error",
        )
    )


async def _on_store_error(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, NotFound):
        if error.kind == "file":
            return error_response(ApiError(404, f"No such File object: {error.id}", "id"))
        return error_response(ApiError(404, f"No {error.kind} found with id '{error.id}'."))
    if isinstance(error, UnknownCursor):
        return error_response(
            invalid_value(
                "after", f"Invalid value for 'after': no object has the id {error.cursor!r}."
            )
        )
    if isinstance(error, IllegalTransition):
        return error_response(
            ApiError(409, f"Cannot {error.action} a batch with status '{error.status}'.")
        )
    if isinstance(error, IdempotencyConflict):
        return error_response(
            ApiError(
                409,
                f"The idempotency key '{error.key}' was used with another request before. Use a "
                "new key for a new request.",
                code="idempotency_key_reused",
            )
        )
    assert isinstance(error, InUse)
    return error_response(
        ApiError(
            409,
            f"File {error.file_id} cannot be deleted: it is the input of batch {error.batch_id}, "
            "which is not through. Cancel the batch first.",
        )
    )
