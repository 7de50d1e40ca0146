"""What the parsers of all formats have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Sequence

from trunkline.engine.answers.markers import find_first, num_open_chars
from trunkline.engine.answers.pieces import Piece
from trunkline.engine.answers.tool_formats.call_object import CallObject
from trunkline.engine.answers.tool_formats.json_value import WHITESPACE, Extent
from trunkline.engine.answers.tool_formats.piece_writer import PieceWriter


class CallParser(ABC):
    """Finds calls in the text of an answer; an `AnswerParser`.

    A parser is in one of its states: `_state` is the method that reads on. It returns whether it
    got anywhere; when it did not, it needs more text. What has been read without being certain to
    belong to a call is held, and becomes content as soon as it turns out not to.
    """

    def __init__(self, names: Container[str], *, parallel: bool = True) -> None:
        """Begin an answer.

        Args:
            names: of the functions that may be called. A call of another is content.
            parallel: whether more calls than the first are wanted; others are left out.
        """
        self._names = names
        self._out = PieceWriter(parallel=parallel)
        self._unread = ""
        self._held = ""
        self._call = CallObject(names, is_marked=False)
        self._is_announced = False
        self._state: Callable[[], bool] = self._read_text

    def push(self, text: str) -> list[Piece]:
        """See `AnswerParser`."""
        self._unread += text
        self._read()
        return self._out.take()

    def finish(self) -> list[Piece]:
        """See `AnswerParser`."""
        self._finish_call()
        while self._held and not self._is_separator():
            self._resume_text()
            self._read()
            self._finish_call()
        if not self._is_separator():
            self._out.write_text(self._unread)
        self._out.finish()
        return self._out.take()

    def _read(self) -> None:
        while self._unread and self._state():
            pass

    def _finish_call(self) -> None:
        if self._state == self._read_call:
            self._call.finish()
            self._write_call()

    def _is_separator(self) -> bool:
        """Whether what is left just separates the last call from one that did not come."""
        rest = self._held + self._unread
        return self._out.num_calls > 0 and not rest.strip(WHITESPACE + ",;")

    @abstractmethod
    def _read_text(self) -> bool:
        """State: text, until something announces a call."""

    @abstractmethod
    def _after_call(self) -> bool:
        """State: right behind a call."""

    def _begin_call(self, *, is_marked: bool) -> bool:
        self._call = CallObject(self._names, is_marked=is_marked)
        self._is_announced = False
        self._state = self._read_call
        return True

    def _read_call(self) -> bool:
        """State: in the object of a call."""
        end = self._call.push(self._unread, 0)
        self._held += self._unread[:end]
        self._unread = self._unread[end:]
        self._write_call()
        if self._call.extent is Extent.OPEN:
            return False
        if self._is_announced:
            self._state = self._after_call
            return True
        return self._resume_text()

    def _write_call(self) -> None:
        """Pass on what is certain of the call."""
        call = self._call
        if call.name is None or not call.is_call:
            return
        if not self._is_announced:
            self._out.begin_call(call.name)
            self._is_announced = True
        self._held = ""
        self._out.write_arguments(call.take_arguments())

    def _after_tag(self) -> bool:
        """State: behind a tag that announces a call, an object has to follow."""
        char = self._next_char()
        if char == "":
            return False
        return self._begin_call(is_marked=True) if char == "{" else self._resume_text()

    def _resume_text(self) -> bool:
        """What is held is not a call; but behind its first char a marker may stand."""
        self._out.write_text(self._held[:1])
        self._unread = self._held[1:] + self._unread
        self._held = ""
        self._state = self._read_text
        return True

    def _pass_text(self, markers: Sequence[str]) -> str | None:
        """Text up to one of the markers becomes content; the marker, which is held then."""
        found = find_first(self._unread, markers)
        if found is None:
            end = len(self._unread) - num_open_chars(self._unread, markers)
            self._out.write_text(self._unread[:end])
            self._unread = self._unread[end:]
            return None
        at, marker = found
        self._out.write_text(self._unread[:at])
        self._unread = self._unread[at:]
        self._hold(len(marker))
        return marker

    def _next_char(self, passed_over: str = WHITESPACE) -> str:
        """The next char that is not one of `passed_over`, which are held; "": not there yet."""
        stripped = self._unread.lstrip(passed_over)
        self._hold(len(self._unread) - len(stripped))
        return stripped[:1]

    def _is_next(self, marker: str) -> bool | None:
        """Whether `marker` comes next; None: that cannot be told yet."""
        if marker.startswith(self._unread) and self._unread != marker:
            return None
        return self._unread.startswith(marker)

    def _hold(self, num_chars: int) -> None:
        self._held += self._unread[:num_chars]
        self._unread = self._unread[num_chars:]
