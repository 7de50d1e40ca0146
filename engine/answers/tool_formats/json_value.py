"""The extent of a JSON value in text that arrives in parts."""

from __future__ import annotations

import re
from enum import StrEnum

WHITESPACE = " \t\r\n"

_IN_STRING = re.compile(r'["\\]')
_IN_STRUCTURE = re.compile(r'["\\{}\[\]<]')
_AFTER_SCALAR = re.compile(r"[,}\]<\s]")


class Extent(StrEnum):
    """How far a value has been read."""

    OPEN = "open"
    COMPLETE = "complete"
    BROKEN = "broken"  # what follows cannot be JSON


class JsonValue:
    """Finds the end of one JSON value.

    Models make mistakes, and what they wrote is for the reader to judge: brackets are counted,
    not matched, and what stands between them is not looked at. Only a ``<`` outside of a string,
    with which the markup of a format goes on, ends a value early.
    """

    def __init__(self) -> None:
        self.extent = Extent.OPEN
        self.text = ""  # the value as far as it has been read
        self._is_scalar = False  # a number, true, false or null
        self._depth = 0  # brackets that are open
        self._in_string = False
        self._is_escaped = False  # the next char follows a backslash in a string

    def push(self, text: str, at: int) -> int:
        """Read on at ``text[at]``; where the value's part of `text` ends.

        The value's first char must not be whitespace.
        """
        if not self.text and at < len(text):
            self._is_scalar = text[at] not in '"{['
        end = self._end(text, at)
        self.text += text[at:end]
        return end

    def finish(self) -> None:
        """No more text follows."""
        if self.extent is Extent.OPEN:
            self.extent = Extent.COMPLETE if self._is_scalar else Extent.BROKEN

    def _end(self, text: str, at: int) -> int:
        if self._is_scalar:
            return self._after_scalar_part(text, at)
        while at < len(text) and self.extent is Extent.OPEN:
            if self._is_escaped:
                self._is_escaped = False
                at += 1
            elif self._in_string:
                at = self._after_string_part(text, at)
            else:
                at = self._after_structure_part(text, at)
        return at

    def _after_scalar_part(self, text: str, at: int) -> int:
        found = _AFTER_SCALAR.search(text, at)
        if found is None:
            return len(text)
        is_empty = not self.text and found.start() == at
        self.extent = Extent.BROKEN if is_empty else Extent.COMPLETE
        return found.start()

    def _after_string_part(self, text: str, at: int) -> int:
        found = _IN_STRING.search(text, at)
        if found is None:
            return len(text)
        if found.group() == "\\":
            self._is_escaped = True
        else:
            self._in_string = False
            self._complete_at_depth_0()
        return found.end()

    def _after_structure_part(self, text: str, at: int) -> int:
        found = _IN_STRUCTURE.search(text, at)
        if found is None:
            return len(text)
        char = found.group()
        if char == "<":
            self.extent = Extent.BROKEN
            return found.start()
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self._complete_at_depth_0()
        return found.end()

    def _complete_at_depth_0(self) -> None:
        if self._depth == 0:
            self.extent = Extent.COMPLETE
