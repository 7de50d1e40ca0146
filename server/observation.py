"""What is seen of every HTTP request: metrics, a line in the log, a span in the trace."""

from __future__ import annotations

import logging
import time
from collections.abc import MutableMapping
from typing import Any

from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trunkline.logs import log_fields
from trunkline.server.metrics import Metrics

logger = logging.getLogger("trunkline.access")

# Asked for every few seconds by machines; a line and a span for each would bury the others.
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
OTHER_METHOD = "OTHER"
# Paths that no route knows are of the client's making, and there is no end of them.
NO_ROUTE = "unmatched"

# In the tradition of nginx: the client went away before it got an answer.
CLIENT_GONE = 499


def is_probe(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request is a machine's question after the server's health."""
    return scope.get("path") in PROBES


# For FastAPI, which makes a span of each request as soon as traces are configured. Its logs would
# go out without redaction.
HTTP_TELEMETRY: TelemetryConfig = {
    "operation_spans": False,
    "logs": False,
    "auto_configure": False,
    "exclude": is_probe,
}


class ObservationMiddleware:
    """Counts requests and logs them. The outermost of all, so that it sees what clients see.

    Whatever handles the request may say more about it with `add_log_fields`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        num_in = num_out = 0
        status: int | None = None
        has_failed = False

        async def count_in() -> Message:
            nonlocal num_in
            message = await receive()
            if message["type"] == "http.request":
                num_in += len(message.get("body", b""))
            return message

        async def count_out(message: Message) -> None:
            nonlocal num_out, status
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                num_out += len(message.get("body", b""))

        with log_fields(), self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, count_in, count_out)
            except BaseException:
                has_failed = True
                raise
            finally:
                seconds = time.perf_counter() - started
                final = status or (500 if has_failed else CLIENT_GONE)
                route, method = _route(scope), _method(scope)
                self._metrics.count_request(route, method, final, seconds, num_in, num_out)
                if not is_probe(scope):
                    _log(method, route, final, seconds, num_in, num_out)


def _log(method: str, route: str, status: int, seconds: float, num_in: int, num_out: int) -> None:
    logger.info(
        "%s %s: %d in %.3f s, %d bytes in, %d bytes out",
        method,
        route,
        status,
        seconds,
        num_in,
        num_out,
        extra={
            "method": method,
            "route": route,
            "status": status,
            "duration_seconds": round(seconds, 6),
            "bytes_in": num_in,
            "bytes_out": num_out,
        },
    )


def _route(scope: Scope) -> str:
    """The template of the route that took the request."""
    route = scope.get("route")
    template = getattr(route, "path_format", None) or getattr(route, "path", None)
    return template or NO_ROUTE


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else OTHER_METHOD
