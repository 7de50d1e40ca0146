"""The pieces of an answer that may hold calls."""

from __future__ import annotations

from trunkline.engine.answers.pieces import CallArguments, CallBegins, Content, Piece
from trunkline.engine.answers.tool_formats.json_value import WHITESPACE


class PieceWriter:
    """Collects pieces and numbers the calls.

    Whitespace before, between and after calls is layout of the format and left out. Text without
    calls is passed on as it is.
    """

    def __init__(self, *, parallel: bool = True) -> None:
        """`parallel`: whether more calls than the first are wanted; others are left out."""
        self.num_calls = 0
        self._parallel = parallel
        self._pieces: list[Piece] = []
        self._space = ""  # it is content if more text follows
        self._has_content = False

    def write_text(self, text: str) -> None:
        text = self._space + text
        body = text.rstrip(WHITESPACE)
        self._space = text[len(body) :]
        if not body:
            return
        if self.num_calls and not self._has_content:
            body = body.lstrip(WHITESPACE)
        self._has_content = True
        self._add(Content(body))

    def begin_call(self, name: str) -> None:
        self._space = ""
        self.num_calls += 1
        self._add(CallBegins(self.num_calls - 1, name))

    def write_arguments(self, text: str) -> None:
        """Arguments of the call that began last."""
        if text:
            self._add(CallArguments(self.num_calls - 1, text))

    def finish(self) -> None:
        """No more text follows."""
        if self._space and not self.num_calls:
            self._add(Content(self._space))
        self._space = ""

    def take(self) -> list[Piece]:
        """What has been written since the last call."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def _add(self, piece: Piece) -> None:
        last = self._pieces[-1] if self._pieces else None
        is_surplus = not isinstance(piece, Content) and self.num_calls > 1 and not self._parallel
        if isinstance(piece, Content) and isinstance(last, Content):
            self._pieces[-1] = Content(last.text + piece.text)
        elif not is_surplus:
            self._pieces.append(piece)
