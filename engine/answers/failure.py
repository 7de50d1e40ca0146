"""What becomes of a request whose answer could not be held to the form that it asks for."""

from __future__ import annotations

from trunkline.engine.request import Request
from trunkline.engine.requests.completion import CompletionRequest
from trunkline.engine.requests.errors import RequestError
from trunkline.engine.requests.parse import GenerationRequest
from trunkline.engine.requests.tools import ToolMode


def failure_of(request: Request, body: GenerationRequest) -> RequestError | None:
    """The request's own error; None: all its sequences are answers."""
    reason = next((s.failure for s in request.sequences if s.failure is not None), None)
    if reason is None:
        return None
    tool_use = None if isinstance(body, CompletionRequest) else body.tool_use
    is_call_required = tool_use is not None and tool_use.mode is ToolMode.REQUIRED
    param = "tools" if is_call_required or body.constraint is None else body.constraint.param
    return RequestError(
        f"The answer could not be generated in the form that '{param}' asks for: {reason}.",
        param,
        "constraint_failed",
    )
