"""Reasoning that a model writes before its answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from trunkline.engine.answers.markers import num_open_chars
from trunkline.engine.answers.pieces import AnswerParser, Piece, Reasoning

_WHITESPACE = " \t\r\n"


@dataclass(frozen=True)
class ThinkTags:
    """What stands before and after a model's reasoning."""

    begin: str
    end: str


# Qwen3, QwQ, DeepSeek-R1 and its distillations, Magistral 2506, SmolLM3
THINK = ThinkTags("<think>", "</think>")
# Magistral from 2509 on, whose tags are special tokens
BRACKETED_THINK = ThinkTags("[THINK]", "[/THINK]")


class _Part(Enum):
    BEFORE = auto()  # whitespace at most
    REASONING = auto()
    BEHIND = auto()  # whitespace between reasoning and answer
    ANSWER = auto()


class ReasoningParser:
    """Takes the reasoning off the beginning of an answer; an `AnswerParser`.

    Reasoning stands between tags at the very beginning, or up to the closing tag where the prompt
    has opened it already; the model may repeat the opening tag then. Whitespace at its ends and
    behind it is left out. Tags further on are text. Reasoning that is not closed is all there is.
    """

    def __init__(self, answer: AnswerParser, tags: ThinkTags, *, starts_thinking: bool) -> None:
        """Begin an answer.

        Args:
            answer: reads what follows the reasoning.
            tags: those of the model.
            starts_thinking: the prompt ends with the opening tag.
        """
        self._answer = answer
        self._tags = tags
        self._starts_thinking = starts_thinking
        self._part = _Part.BEFORE
        self._unread = ""
        self._has_reasoning = False

    def push(self, text: str) -> list[Piece]:
        """See `AnswerParser`."""
        self._unread += text
        pieces: list[Piece] = []
        if self._part is _Part.BEFORE:
            self._read_begin()
        if self._part is _Part.REASONING:
            pieces += self._read_reasoning()
        if self._part is _Part.BEHIND:
            self._unread = self._unread.lstrip(_WHITESPACE)
            if self._unread:
                self._part = _Part.ANSWER
        if self._part is _Part.ANSWER:
            text, self._unread = self._unread, ""
            pieces += self._answer.push(text)
        return pieces

    def finish(self) -> list[Piece]:
        """See `AnswerParser`."""
        rest = self._unread.rstrip(_WHITESPACE)
        if self._part is _Part.REASONING or (self._part is _Part.BEFORE and self._starts_thinking):
            return [*self._reasoning(rest), *self._answer.finish()]
        pieces = self._answer.push(self._unread) if self._part is _Part.BEFORE else []
        return [*pieces, *self._answer.finish()]

    def _read_begin(self) -> None:
        """See whether there is an opening tag, once that is certain."""
        text = self._unread.lstrip(_WHITESPACE)
        begin = self._tags.begin
        if text.startswith(begin):
            self._unread = text[len(begin) :]
            self._part = _Part.REASONING
        elif not begin.startswith(text):
            self._part = _Part.REASONING if self._starts_thinking else _Part.ANSWER

    def _read_reasoning(self) -> list[Piece]:
        end = self._tags.end
        reasoning, tag, behind = self._unread.partition(end)
        if tag:
            self._unread = behind
            self._part = _Part.BEHIND
            return self._reasoning(reasoning.rstrip(_WHITESPACE))
        # Whitespace is held back: it may be the last before the closing tag.
        whole = self._unread[: len(self._unread) - num_open_chars(self._unread, [end])]
        certain = whole.rstrip(_WHITESPACE)
        self._unread = self._unread[len(certain) :]
        return self._reasoning(certain)

    def _reasoning(self, text: str) -> list[Piece]:
        if not self._has_reasoning:
            text = text.lstrip(_WHITESPACE)
        if not text:
            return []
        self._has_reasoning = True
        return [Reasoning(text)]
