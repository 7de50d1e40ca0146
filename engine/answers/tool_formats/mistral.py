"""The formats of Mistral's models.

Mistral 7B v0.3, Nemo, Small 3.0 and 3.1 write a list of all calls behind the special token
``[TOOL_CALLS]``::

    [TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]

Small 3.2, Magistral 2507, Devstral 1.1 and later ones write each call behind a ``[TOOL_CALLS]`` of
its own, its arguments behind the special token ``[ARGS]``, which may be left out in text::

    [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}

Between the two there may be ``[CALL_ID]`` and an identifier, as in the conversations on which the
first of them were trained.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence

from trunkline.engine.answers.markers import find_first, num_open_chars
from trunkline.engine.answers.tool_formats.call_parser import CallParser
from trunkline.engine.answers.tool_formats.json_value import WHITESPACE, Extent, JsonValue
from trunkline.engine.answers.tool_formats.lark import (
    arguments_rules,
    literal,
    marker,
    object_rules,
    repeated,
)
from trunkline.engine.requests.tools import FunctionTool

TOOL_CALLS = "[TOOL_CALLS]"
CALL_ID = "[CALL_ID]"
ARGS = "[ARGS]"

_NAME = re.compile(r"\s*[\w.-]*\s*")


class MistralParser(CallParser):
    """Finds calls behind ``[TOOL_CALLS]``, in either format."""

    def __init__(self, names: Container[str], *, parallel: bool = True) -> None:
        super().__init__(names, parallel=parallel)
        self._is_in_list = False
        self._name = ""
        self._arguments = JsonValue()

    def _read_text(self) -> bool:
        if self._pass_text([TOOL_CALLS]) is None:
            return False
        self._state = self._after_marker
        return True

    def _after_marker(self) -> bool:
        """State: a list of calls, one object or a name follows."""
        char = self._next_char()
        if char == "":
            return False
        self._is_in_list = char == "["
        if char == "[":
            self._hold(1)
            self._state = self._in_list
            return True
        if char == "{":
            return self._begin_call(is_marked=True)
        self._state = self._read_name
        return True

    def _in_list(self) -> bool:
        """State: the first call of a list has to follow."""
        char = self._next_char()
        if char == "":
            return False
        return self._begin_call(is_marked=True) if char == "{" else self._resume_text()

    def _after_call(self) -> bool:
        if not self._is_in_list:
            return self._resume_text()
        char = self._next_char(WHITESPACE + ",}")
        if char == "":
            return False
        if char == "{":
            return self._begin_call(is_marked=True)
        if char == "]":
            self._unread = self._unread[1:]
            self._held = ""
        return self._resume_text()

    def _read_name(self) -> bool:
        """State: a name follows, up to the arguments or to the call's identifier."""
        found = find_first(self._unread, [CALL_ID, ARGS, "{"])
        if found is None:
            end = len(self._unread) - num_open_chars(self._unread, [CALL_ID, ARGS])
            return False if _NAME.fullmatch(self._unread, 0, end) else self._resume_text()
        at, marker = found
        self._name = self._unread[:at].strip(WHITESPACE)
        if self._name not in self._names:
            return self._resume_text()
        self._hold(at)
        if marker == CALL_ID:
            self._hold(len(CALL_ID))
            self._state = self._read_identifier
            return True
        return self._begin_arguments(marker)

    def _read_identifier(self) -> bool:
        """State: the call's identifier follows, up to the arguments."""
        found = find_first(self._unread, [ARGS, "{"])
        if found is None:
            return False
        at, marker = found
        self._hold(at)
        return self._begin_arguments(marker)

    def _begin_arguments(self, marker: str) -> bool:
        if marker == ARGS:
            self._hold(len(ARGS))
        self._held = ""
        self._out.begin_call(self._name)
        self._arguments = JsonValue()
        self._state = self._read_arguments
        return True

    def _read_arguments(self) -> bool:
        """State: in the arguments of a call in the newer format."""
        if not self._arguments.text and self._next_char() != "{":
            return self._unread != "" and self._resume_text()
        self._held = ""
        end = self._arguments.push(self._unread, 0)
        self._out.write_arguments(self._unread[:end])
        self._unread = self._unread[end:]
        return self._arguments.extent is not Extent.OPEN and self._resume_text()


def mistral_list_rules(
    tools: Sequence[FunctionTool], vocabulary: Mapping[str, int], *, parallel: bool
) -> list[str]:
    """Rules of a grammar: ``calls`` is a list of calls of `tools` and nothing else."""
    objects = repeated("object", literal(", "), parallel=parallel)
    begin = marker(TOOL_CALLS, vocabulary)
    return [
        # SentencePiece vocabularies have a space here, the others none.
        f"calls: {begin} {literal(' ')}? {literal('[')} {objects} {literal(']')}",
        *object_rules(tools, "arguments"),
    ]


def mistral_named_rules(
    tools: Sequence[FunctionTool], vocabulary: Mapping[str, int], *, parallel: bool
) -> list[str]:
    """Rules of a grammar: ``calls`` is calls of `tools`, each behind its name, nothing else."""
    begin, args = marker(TOOL_CALLS, vocabulary), marker(ARGS, vocabulary)
    calls = [
        f"{begin} {literal(tool.name)} {args} arguments_{number}"
        for number, tool in enumerate(tools)
    ]
    return [
        f"calls: {'call+' if parallel else 'call'}",
        f"call: {' | '.join(calls)}",
        *arguments_rules(tools),
    ]
