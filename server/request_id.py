"""Every reply carries an `x-request-id`, and what goes wrong unforeseen becomes a reply too."""

from __future__ import annotations

import logging
import secrets

from opentelemetry.trace import get_current_span
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trunkline.logs import add_log_fields
from trunkline.server.errors import error_response, internal_error

logger = logging.getLogger(__name__)


class RequestIdMiddleware:
    """Plain ASGI, so that bodies stream through untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        add_log_fields(request_id=request_id)
        get_current_span().set_attribute("trunkline.request_id", request_id)
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.info("%s %s: the client went away", scope["method"], scope["path"])
        except Exception:
            logger.exception("%s %s failed (%s)", scope["method"], scope["path"], request_id)
            if has_started:
                raise
            await error_response(internal_error())(scope, receive, send_with_id)
