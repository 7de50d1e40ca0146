"""The reply to a live request: the engine's answer as it stands, or its events as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from fastapi.sse import format_sse_event
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from trunkline.server.errors import ApiError, error_body
from trunkline.server.live_poller import LiveWait
from trunkline.server.observation import CLIENT_GONE
from trunkline.store.endpoints import RESPONSES
from trunkline.store.live import LiveState

# Proxies close a connection on which nothing comes.
KEEP_ALIVE_SECONDS = 15.0


async def live_reply(
    request: Request,
    wait: LiveWait,
    endpoint: str,
    ended: Callable[[int], None],
    *,
    is_streaming: bool,
) -> Response:
    """The reply, as soon as it can begin.

    A stream begins with its first event; what goes wrong before that is an error reply like any
    other.

    Args:
        ended: is told the status, once, when the reply is through, or 499 when the client has gone.

    Raises:
        ApiError: there will be no answer.
        ClientDisconnect: nobody waits for it.
    """
    status = CLIENT_GONE
    is_over = True
    try:
        first = await _first(request, wait)
        if is_streaming and (first.events or first.status_code == 200):
            is_over = False
            return LiveStream(wait, first, endpoint, ended)
        assert first.status_code is not None
        status = first.status_code
        return Response(first.body, status, media_type="application/json")
    except ApiError as error:
        status = error.status_code
        raise
    finally:
        if is_over:
            wait.close()
            ended(status)


class LiveStream(StreamingResponse):
    """Server-sent events from an engine to a client."""

    media_type = "text/event-stream"

    def __init__(
        self, wait: LiveWait, first: LiveState, endpoint: str, ended: Callable[[int], None]
    ) -> None:
        # A proxy that collects the stream before it passes it on would defeat it.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(self._events(first), headers=headers)
        self._wait = wait
        self._endpoint = endpoint
        self._ended = ended
        self._final_status = CLIENT_GONE
        self._num_sent = 0
        self._last_event: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._wait.close()
            self._ended(self._final_status)

    async def _events(self, first: LiveState) -> AsyncIterator[bytes]:
        state: LiveState | None = first
        while True:
            if state is None:
                yield b": still here\n\n"
            else:
                self._num_sent += len(state.events)
                if state.events:
                    self._last_event = state.events[-1].event
                chunk = b"".join(
                    format_sse_event(event=event.event, data_str=event.data)
                    for event in state.events
                )
                if state.status_code is not None:
                    yield chunk + self._end(state.status_code, state.body)
                    self._final_status = state.status_code
                    return
                yield chunk
            try:
                state = await self._wait.next(KEEP_ALIVE_SECONDS)
            except ApiError as error:
                yield self._error(error_body(error))
                self._final_status = error.status_code
                return

    def _end(self, status_code: int, body: str | None) -> bytes:
        if status_code != 200:
            return self._error(json.loads(body or "{}"))
        if self._endpoint == RESPONSES:  # its last event says that it is the last
            return b""
        return format_sse_event(data_str="[DONE]")

    def _error(self, body: dict[str, Any]) -> bytes:
        """The event of an error; `body` is what its reply would have been."""
        if self._endpoint != RESPONSES:
            return format_sse_event(data_str=json.dumps(body))
        if self._last_event == "response.failed":  # says it, with what there is of an answer
            return b""
        error = body.get("error", {})
        data = {
            "type": "error",
            "code": error.get("code"),
            "message": error.get("message"),
            "param": error.get("param"),
            "sequence_number": self._num_sent,
        }
        return format_sse_event(event="error", data_str=json.dumps(data))


async def _first(request: Request, wait: LiveWait) -> LiveState:
    """The first news of the request.

    Raises:
        ClientDisconnect: the client has gone before that.
    """
    news = asyncio.ensure_future(wait.next())
    gone = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait([news, gone], return_when=asyncio.FIRST_COMPLETED)
        if not news.done():
            raise ClientDisconnect
        state = news.result()
        assert state is not None  # there is no time limit
        return state
    finally:
        for task in (news, gone):
            task.cancel()
        await asyncio.gather(news, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
