"""The format of Nous Hermes 2 Pro and Hermes 3, and of Qwen2.5 and Qwen3.

A call is an object with the members ``name`` and ``arguments``, in tags, each on lines of their
own; several calls follow each other::

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

The tags are tokens in Qwen's and Hermes 3's vocabularies, though not special ones, and spelled in
others. Text may stand before the calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trunkline.engine.answers.tool_formats.call_parser import CallParser
from trunkline.engine.answers.tool_formats.lark import literal, marker, object_rules, repeated
from trunkline.engine.requests.tools import FunctionTool

BEGIN = "<tool_call>"
END = "</tool_call>"


class HermesParser(CallParser):
    """Finds calls in tags.

    Models forget closing tags, put several objects between two tags, or close more brackets than
    they opened: all of these are read as what they mean.
    """

    _is_tag_open = False

    def _read_text(self) -> bool:
        marker = self._pass_text([BEGIN, END] if self._is_tag_open else [BEGIN])
        if marker is None:
            return False
        if marker == END:
            return self._close_tag()
        self._state = self._after_tag
        return True

    def _resume_text(self) -> bool:
        self._is_tag_open = False  # what does not open a call does not close one
        return super()._resume_text()

    def _after_call(self) -> bool:
        char = self._next_char()
        if char in ("}", "]"):
            self._unread = self._unread[1:]
            return True
        if char == "{":
            return self._begin_call(is_marked=True)
        is_end = self._is_next(END)
        if char == "" or is_end is None:
            return False
        if is_end:
            self._unread = self._unread[len(END) :]
            return self._close_tag()
        super()._resume_text()
        self._is_tag_open = True
        return True

    def _close_tag(self) -> bool:
        self._held = ""
        return self._resume_text()


def hermes_rules(
    tools: Sequence[FunctionTool], vocabulary: Mapping[str, int], *, parallel: bool
) -> list[str]:
    """Rules of a grammar: ``calls`` is calls of `tools` and nothing else."""
    begin, end = marker(BEGIN, vocabulary), marker(END, vocabulary)
    newline = literal("\n")
    return [
        f"calls: {repeated('call', newline, parallel=parallel)}",
        f"call: {begin} {newline} object {newline} {end}",
        *object_rules(tools, "arguments"),
    ]
