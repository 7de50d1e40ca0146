"""From one sequence's tokens to the pieces of its answer, as far as it has come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from trunkline.engine.answers.format import AnswerFormat
from trunkline.engine.answers.pieces import CallBegins, Piece, Reasoning
from trunkline.engine.answers.text_stream import Detokenizer, TextStream
from trunkline.engine.sequence import Sequence as TokenSequence


@dataclass(frozen=True)
class Part:
    """A piece of an answer, and which of the generated tokens it came from.

    ``tokens`` is empty for reasoning, and for all pieces unless a reader tells tokens apart.
    """

    piece: Piece
    tokens: range


class AnswerReader:
    """Reads one sequence, whenever it is asked to and at its end.

    Args:
        sequence: to read; the reader only looks at its output.
        tells_tokens: tokens are read one by one, so that each is known to belong to a part.
    """

    def __init__(
        self,
        sequence: TokenSequence,
        tokenizer: Detokenizer,
        answer_format: AnswerFormat,
        *,
        tells_tokens: bool,
    ) -> None:
        self._sequence = sequence
        self._tokenizer = tokenizer
        self._format = answer_format
        self._tells_tokens = tells_tokens
        self._text = TextStream(tokenizer, sequence.sampling, answer_format.keeps_special_tokens)
        self._parser = answer_format.parser()
        self._num_read = 0  # tokens
        self._num_written = 0  # tokens whose text the parser has
        self._num_told = 0  # tokens that belong to a part
        self._has_reasoning = False
        self._num_reasoning_tokens: int | None = None

    def read(self) -> list[Part]:
        """What the tokens since the last call have made certain."""
        new = self._sequence.output[self._num_read :]
        parts: list[Part] = []
        for tokens in [[token] for token in new] if self._tells_tokens else [new]:
            text = self._text.push(tokens)
            self._num_read += len(tokens)
            if text:
                self._num_written = self._num_read
                parts += map(self._part, self._parser.push(text))
        return joined(parts)

    def finish(self) -> list[Part]:
        """Everything that is left; the sequence has finished."""
        parts = self.read()
        text = self._text.finish()
        if text:
            is_stopped = self._sequence.output[-1] in self._sequence.sampling.stop_token_ids
            self._num_written = self._num_read - is_stopped
        pieces = [*(self._parser.push(text) if text else []), *self._parser.finish()]
        return joined([*parts, *map(self._part, pieces)])

    @property
    def num_reasoning_tokens(self) -> int:
        """Generated tokens up to the end of the thought and its mark, once the answer is read."""
        if not self._has_reasoning:
            return 0
        if self._num_reasoning_tokens is None:
            self._num_reasoning_tokens = self._count_reasoning()
        return self._num_reasoning_tokens

    def _part(self, piece: Piece) -> Part:
        if isinstance(piece, Reasoning):
            self._has_reasoning = True
            return Part(piece, range(0))
        if not self._tells_tokens:
            return Part(piece, range(0))
        start = max(self._num_told, self.num_reasoning_tokens)
        self._num_told = self._num_written
        return Part(piece, range(start, max(start, self._num_written)))

    def _count_reasoning(self) -> int:
        """The least number of tokens that have the closing tag; all, where there is none."""
        tags = self._format.think_tags
        assert tags is not None, "there is reasoning between tags only"
        end = tags.end.encode()
        names: dict[int, bytes] = {}  # few different tokens make a long thought
        last = b""
        for index, token in enumerate(self._sequence.output[: self._num_read]):
            if token not in names:
                names[token] = self._tokenizer.token_bytes(token)
            last += names[token]
            if end in last:
                return index + 1
            last = last[-len(end) :]
        return self._num_read


def joined(parts: Iterable[Part]) -> list[Part]:
    """The same parts, neighbours of one kind as one."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        piece = None if last is None else _one_piece(last.piece, part.piece)
        if last is None or piece is None:
            found.append(part)
            continue
        both = [tokens for tokens in (last.tokens, part.tokens) if tokens]
        tokens = range(both[0].start, both[-1].stop) if both else range(0)
        found[-1] = Part(piece, tokens)
    return found


def _one_piece(first: Piece, second: Piece) -> Piece | None:
    """Both as one, where that is possible.

    Arguments that follow one another are of one call: another one would have to begin first.
    """
    if isinstance(first, CallBegins) or isinstance(second, CallBegins):
        return None
    return replace(first, text=first.text + second.text) if type(first) is type(second) else None
