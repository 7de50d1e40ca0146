"""Function tools: what a model may call, and what it must."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True)
class FunctionTool:
    """A function that the model may call.

    ``parameters`` is the JSON schema of its arguments, an object.
    """

    name: str
    description: str | None = None
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False


class ToolMode(StrEnum):
    """Whether the answer has to be a call."""

    AUTO = "auto"  # the model decides
    NONE = "none"  # no calls
    REQUIRED = "required"  # at least one call


@dataclass(frozen=True)
class ToolUse:
    """The tools of a request and how they are to be used.

    A named choice is `REQUIRED` with that tool alone in ``callable``.
    """

    tools: tuple[FunctionTool, ...]  # all of them, as the chat template shows them
    callable: tuple[FunctionTool, ...]  # those that may be called
    mode: ToolMode
    parallel: bool = True  # more than one call in an answer
