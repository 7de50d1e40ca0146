"""A function call written as a JSON object: ``{"name": "f", "arguments": {...}}``."""

from __future__ import annotations

import json
from collections.abc import Container
from enum import StrEnum, auto

from trunkline.engine.answers.tool_formats.json_value import WHITESPACE, Extent, JsonValue

_ARGUMENT_KEYS = ("arguments", "parameters")
_KEYS = frozenset({"name", *_ARGUMENT_KEYS, "type", "id"})


class _Expected(StrEnum):
    """What stands next in the object."""

    OBJECT = auto()
    KEY_OR_END = auto()
    COLON = auto()
    VALUE = auto()
    COMMA_OR_END = auto()


class CallObject:
    """Reads one call from text that arrives in parts.

    Members may come in any order; others than the name and the arguments are passed over (Mistral
    writes an ``id``, Llama 3.2 a ``type``). The arguments are passed on as they are written, but
    for those that a model wrote as a string of JSON, which is opened.

    Attributes:
        extent: OPEN while the object may go on; BROKEN when it turns out not to be a call, or to
            be one that is malformed from here on (`is_call`).
        name: of the function, once known.
    """

    def __init__(self, names: Container[str], *, is_marked: bool) -> None:
        """Begin an object.

        Args:
            names: of the functions that may be called.
            is_marked: a marker says that it is a call. Without one it may as well be an answer in
                JSON, and has to have arguments, and no members that calls do not have.
        """
        self.extent = Extent.OPEN
        self.name: str | None = None
        self._names = names
        self._is_marked = is_marked
        self._expected = _Expected.OBJECT
        self._key = ""
        self._value = JsonValue()
        self._arguments: JsonValue | None = None
        self._num_taken = 0  # chars of the arguments' text

    @property
    def is_call(self) -> bool:
        """Whether this is a call for certain, whatever follows."""
        if self.name is None:
            return False
        has_ended = self.extent is not Extent.OPEN
        return self._arguments is not None or (self._is_marked and has_ended)

    def push(self, text: str, at: int) -> int:
        """Read on at ``text[at]``; where the object's part of `text` ends.

        A break is where the first char stands that does not belong to the object.
        """
        while at < len(text) and self.extent is Extent.OPEN:
            if self._value.text or text[at] not in WHITESPACE:
                at = self._step(text, at)
            else:
                at += 1
        return at

    def finish(self) -> None:
        """No more text follows."""
        if self.extent is Extent.OPEN:
            self._value.finish()
            self.extent = Extent.BROKEN

    def take_arguments(self) -> str:
        """The text of the arguments that has not been taken yet."""
        text = self._arguments_text()
        taken, self._num_taken = self._num_taken, len(text)
        return text[taken:]

    def _arguments_text(self) -> str:
        value = self._arguments
        if value is None:
            return "{}" if self.extent is Extent.COMPLETE else ""
        if value.text.startswith(("{", "[")):
            return value.text
        # What is not an object is passed on once it has been seen whole.
        return "" if value.extent is Extent.OPEN else _opened(value.text)

    def _step(self, text: str, at: int) -> int:
        """Read something at ``text[at]``, which is not whitespace between two parts."""
        char = text[at]
        match self._expected:
            case _Expected.KEY_OR_END if self._value.text or char == '"':
                at = self._value.push(text, at)
                if self._value.extent is Extent.COMPLETE:
                    self._key = _string(self._value.text) or ""
                    self._expect(_Expected.COLON)
                    if not self._is_marked and self._key not in _KEYS:
                        self.extent = Extent.BROKEN
                return at
            case _Expected.VALUE:
                return self._read_value(text, at)
            case _Expected.OBJECT if char == "{":
                self._expect(_Expected.KEY_OR_END)
            case _Expected.COLON if char == ":":
                self._expect(_Expected.VALUE)
                self._begin_value()
            case _Expected.COMMA_OR_END if char == ",":
                self._expect(_Expected.KEY_OR_END)
            case _Expected.KEY_OR_END | _Expected.COMMA_OR_END if char == "}":
                self.extent = Extent.COMPLETE if self.name is not None else Extent.BROKEN
            case _:
                self.extent = Extent.BROKEN
                return at
        return at + 1

    def _expect(self, expected: _Expected) -> None:
        self._expected = expected
        self._value = JsonValue()

    def _begin_value(self) -> None:
        if self._key in _ARGUMENT_KEYS and self._arguments is None:
            self._arguments = self._value

    def _read_value(self, text: str, at: int) -> int:
        value = self._value
        at = value.push(text, at)
        if value.extent is Extent.BROKEN:
            self.extent = Extent.BROKEN
        elif value.extent is Extent.COMPLETE:
            if self._key == "name" and self.name is None:
                name = _string(value.text)
                if name is None or name not in self._names:
                    self.extent = Extent.BROKEN
                    return at
                self.name = name
            self._expect(_Expected.COMMA_OR_END)
        return at


def _string(text: str) -> str | None:
    """The value of a JSON string; None: it is not one."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _opened(text: str) -> str:
    """Arguments that are not written as an object, as the object that is meant, if one is."""
    if text == "null":
        return "{}"
    inner = _string(text)
    try:
        return inner if inner and isinstance(json.loads(inner), dict) else text
    except ValueError:
        return text
