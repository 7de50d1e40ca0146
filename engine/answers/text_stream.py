"""The text of a sequence as it grows: what is certain by now, and nothing that would be taken back.

Three things hold text back: a character whose bytes are not all there, what may be the beginning
of a stop string, and a token that ends the answer if nothing follows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Protocol

from trunkline.engine.sequence import SamplingParams

_REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """What is needed of a tokenizer to write answers."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""

    def decode(self, token_ids: Sequence[int], *, keep_special_tokens: bool = False) -> str:
        """Text of the tokens. Incomplete UTF-8 becomes U+FFFD."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; a special token's are its name."""


class TextStream:
    """Follows one sequence's text, whether its tokens come one by one or all at once.

    Args:
        tokenizer: of the model.
        sampling: its stop tokens and stop strings end the text and are no part of it.
        keeps_special_tokens: special tokens are in the text, but for those that end an answer.
        context: tokens before the first one, where the text continues theirs.
    """

    def __init__(
        self,
        tokenizer: Detokenizer,
        sampling: SamplingParams,
        keeps_special_tokens: bool = False,
        context: Sequence[int] = (),
    ) -> None:
        self._decode = (
            partial(tokenizer.decode, keep_special_tokens=True)
            if keeps_special_tokens
            else tokenizer.decode
        )
        self._left_out = tokenizer.eos_token_ids if keeps_special_tokens else frozenset[int]()
        self._stop_token_ids = sampling.stop_token_ids
        self._stop_strings = sampling.stop_strings
        self._stop_token: int | None = None  # came last, and is left out if it stays the last
        # A token is decoded together with those of the text before it, because some tokenizers
        # write a token differently at the start of a text.
        self._tokens = list(context)
        self._num_read = len(self._tokens)  # of _tokens: their text is in _held or was returned
        self._held = ""  # may be the beginning of a stop string
        self._is_cut = False  # by a stop string: all that follows is left out

    def push(self, token_ids: Iterable[int]) -> str:
        """Add tokens that follow those before; the text that is certain by now."""
        for token in token_ids:
            if self._stop_token is not None:
                self._add(self._stop_token)
            if token in self._stop_token_ids:
                self._stop_token = token
            else:
                self._stop_token = None
                self._add(token)
        read, text = self._decoded()
        # Without text, as a special token is, the tokens before stay the context of what follows.
        if len(text) <= len(read) or text.endswith(_REPLACEMENT):
            return ""
        self._tokens = self._tokens[self._num_read :]
        self._num_read = len(self._tokens)
        return self._cut(text[len(read) :], is_end=False)

    def finish(self) -> str:
        """No more tokens follow: the text that was held back."""
        read, text = self._decoded()
        self._tokens, self._num_read, self._stop_token = [], 0, None
        return self._cut(text[len(read) :], is_end=True)

    def _add(self, token: int) -> None:
        if token not in self._left_out:
            self._tokens.append(token)

    def _decoded(self) -> tuple[str, str]:
        """The text of the tokens that were read, and of all tokens."""
        if len(self._tokens) == self._num_read or self._is_cut:
            return "", ""
        read = self._decode(self._tokens[: self._num_read]) if self._num_read else ""
        return read, self._decode(self._tokens)

    def _cut(self, text: str, *, is_end: bool) -> str:
        """What is certain of the text that was held back and the `text` after it."""
        if self._is_cut or not self._stop_strings:
            return "" if self._is_cut else text
        text = self._held + text
        begins = [at for stop in self._stop_strings if (at := text.find(stop)) >= 0]
        if begins:
            self._is_cut = True
            self._held = ""
            return text[: min(begins)]
        num_held = 0 if is_end else self._num_unsure(text)
        split = len(text) - num_held
        self._held = text[split:]
        return text[:split]

    def _num_unsure(self, text: str) -> int:
        """Characters at the end of `text` that a stop string may begin with."""
        longest = min(max(map(len, self._stop_strings)) - 1, len(text))
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stop_strings):
                return length
        return 0
