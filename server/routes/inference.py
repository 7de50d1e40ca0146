"""Requests that are answered at once: what the lines of a batch may ask for, one at a time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from fastapi.responses import Response

from trunkline.logs import add_log_fields
from trunkline.server.errors import ApiError, invalid_type, missing_parameter
from trunkline.server.json_body import parse_object, read_body
from trunkline.server.live_poller import unavailable
from trunkline.server.live_reply import LiveStream, live_reply
from trunkline.server.openapi import Schema, json_body
from trunkline.server.scope import Scope, ScopeOf
from trunkline.server.state import State, StateOf
from trunkline.store.endpoints import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    RERANK,
    RESPONSES,
    SCORE,
    STREAMING_ENDPOINTS,
)
from trunkline.store.live import NewLiveRequest

router = APIRouter()

MAX_LIVE_BODY_BYTES = 32 * 1024 * 1024

_LIST: Schema = {"type": "array"}
_TEXT_OR_LIST: Schema = {"type": ["string", "array"]}

# What each endpoint is asked with, beside `model`. The engine knows the rest, and checks it.
FIELDS: Mapping[str, Mapping[str, Schema]] = {
    CHAT_COMPLETIONS: {"messages": _LIST},
    COMPLETIONS: {"prompt": _TEXT_OR_LIST},
    RESPONSES: {"input": _TEXT_OR_LIST},
    EMBEDDINGS: {"input": _TEXT_OR_LIST},
    SCORE: {"text_1": _TEXT_OR_LIST, "text_2": _TEXT_OR_LIST},
    RERANK: {"query": {"type": "string"}, "documents": _LIST},
}


@dataclass(frozen=True, slots=True)
class _Submitted:
    request_id: str
    model: str
    is_streaming: bool


async def _infer(endpoint: str, request: Request, state: State, scope: Scope) -> Response:
    raw = await read_body(request, MAX_LIVE_BODY_BYTES)
    submitted = await run_sync(_submit, endpoint, raw, state, scope)
    add_log_fields(live_request_id=submitted.request_id)
    return await live_reply(
        request,
        state.live.wait(submitted.request_id, submitted.model, state.settings.live_timeout_seconds),
        endpoint,
        partial(state.metrics.count_live, endpoint),
        is_streaming=submitted.is_streaming,
    )


def _submit(endpoint: str, raw: bytes, state: State, scope: Scope) -> _Submitted:
    """Raises ApiError when it is no request that an engine could take."""
    body = parse_object(raw)
    model = body.get("model")
    if model is None:
        raise missing_parameter("model")
    if not isinstance(model, str):
        raise invalid_type("model", "a string", model)
    settings = state.settings
    now = time.time()
    if model not in state.engines.alive(now, settings.engine_alive_seconds).values():
        raise _not_served(model, state)
    is_streaming = endpoint in STREAMING_ENDPOINTS and body.get("stream") is True
    new = NewLiveRequest(
        project_id=scope.project.id,
        endpoint=endpoint,
        model=model,
        body=raw.decode(),
        is_streaming=is_streaming,
        server=settings.server_name,
        expires_at=now + settings.live_timeout_seconds,
    )
    return _Submitted(state.live_requests.submit(new, now), model, is_streaming)


def _not_served(model: str, state: State) -> ApiError:
    if model in state.models():
        return unavailable(
            f"No engine serves the model '{model}' at the moment. Please try again later.",
            "engine_unavailable",
        )
    return ApiError(404, f"The model '{model}' does not exist", "model", "model_not_found")


def _add(endpoint: str, fields: Mapping[str, Schema]) -> None:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    properties: dict[str, Schema] = {"model": {"type": "string"}, **fields}
    if endpoint in STREAMING_ENDPOINTS:
        properties["stream"] = {"type": ["boolean", "null"]}
        content[LiveStream.media_type] = {"schema": {"type": "object"}}
    name = endpoint.removeprefix("/v1/").replace("/", "_")
    router.add_api_route(
        endpoint,
        _route(endpoint),
        methods=["POST"],
        name=name,
        summary=f"{name.replace('_', ' ').capitalize()}, answered by an engine at once",
        response_class=Response,
        responses={200: {"content": content}},
        openapi_extra=json_body(properties, ["model"]),
    )


def _route(endpoint: str) -> Callable[..., Awaitable[Response]]:
    async def infer(request: Request, state: StateOf, scope: ScopeOf) -> Response:
        return await _infer(endpoint, request, state, scope)

    return infer


for _endpoint, _fields in FIELDS.items():
    _add(_endpoint, _fields)
