"""The format of Llama 3.1, 3.2 and 3.3.

An answer that is a call is nothing but an object with the members ``name`` and ``parameters``::

    {"name": "get_weather", "parameters": {"city": "Paris"}}

The special token ``<|python_tag|>`` may stand before it (the 3.1 models write it on their own
account, and where the template knows built-in tools). Several calls are separated by semicolons.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from trunkline.engine.answers.tool_formats.call_parser import CallParser
from trunkline.engine.answers.tool_formats.json_value import WHITESPACE
from trunkline.engine.answers.tool_formats.lark import literal, marker, object_rules, repeated
from trunkline.engine.requests.tools import FunctionTool

PYTHON_TAG = "<|python_tag|>"
SEPARATOR = ";"


class Llama3Parser(CallParser):
    """Finds calls at the beginning of an answer, behind ``<|python_tag|>`` and behind calls.

    An answer in JSON looks like a call for a while. It is one when it has the name of a tool and
    arguments.
    """

    def __init__(self, names: Container[str], *, parallel: bool = True) -> None:
        super().__init__(names, parallel=parallel)
        self._state = self._read_start

    def _read_start(self) -> bool:
        """State: nothing but whitespace has been read."""
        char = self._next_char()
        if char == "":
            return False
        return self._begin_call(is_marked=False) if char == "{" else self._resume_text()

    def _read_text(self) -> bool:
        if self._pass_text([PYTHON_TAG]) is None:
            return False
        self._state = self._after_tag
        return True

    def _after_call(self) -> bool:
        char = self._next_char(WHITESPACE + SEPARATOR)
        if char == "{":
            return self._begin_call(is_marked=False)
        is_tag = self._is_next(PYTHON_TAG)
        if char == "" or is_tag is None:
            return False
        if not is_tag:
            return self._resume_text()
        self._hold(len(PYTHON_TAG))
        self._state = self._after_tag
        return True


def llama3_rules(
    tools: Sequence[FunctionTool], vocabulary: Mapping[str, int], *, parallel: bool
) -> list[str]:
    """Rules of a grammar: ``calls`` is calls of `tools` and nothing else."""
    objects = repeated("object", literal(f"{SEPARATOR} "), parallel=parallel)
    tag = f"{marker(PYTHON_TAG, vocabulary)}? " if PYTHON_TAG in vocabulary else ""
    return [f"calls: {tag}{objects}", *object_rules(tools, "parameters")]
