"""What an answer is made of, as it is read from the text that a model writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """Text that the model wrote while it thought."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    """A function call; its arguments follow."""

    index: int  # from 0 within the answer
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A part of the arguments of the call that began last, JSON text."""

    index: int
    text: str


Piece = Content | Reasoning | CallBegins | CallArguments


class AnswerParser(Protocol):
    """Reads one answer as it grows.

    However the text is cut into parts, the pieces' texts add up to the same.
    """

    def push(self, text: str) -> list[Piece]:
        """Read `text`, which follows what was read before; what is certain by now."""

    def finish(self) -> list[Piece]:
        """The text is complete: what was held back, as the pieces it turned out to be."""
