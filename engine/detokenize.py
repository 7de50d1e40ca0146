"""The text of a sequence as it grows, to find stop strings."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import Protocol

_REPLACEMENT = "\ufffd"


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, token_ids: Tokens[int]) -> str:
        """Text of the tokens, without special tokens. Incomplete UTF-8 becomes U+FFFD."""
        ...


class StopStringWatcher:
    """Follows one sequence's text, token by token, until a stop string is in it.

    A token can end in the middle of a character; its text waits until the character is whole.
    Each token is decoded together with the few before it, because some tokenizers write a token
    differently at the start of a text.
    """

    def __init__(self, decoder: Decoder, stop_strings: tuple[str, ...]) -> None:
        self._decoder = decoder
        self._stop_strings = stop_strings
        self._tail_chars = max(map(len, stop_strings), default=0) - 1
        self._tail = ""  # the end of the text, long enough to hold all but one char of a stop
        self._tokens: list[int] = []  # those that are still needed as context
        self._num_read = 0  # of _tokens: their text has been looked at

    def push(self, token_id: int) -> bool:
        """Add a token; true when a stop string is complete."""
        self._tokens.append(token_id)
        read = self._decoder.decode(self._tokens[: self._num_read])
        text = self._decoder.decode(self._tokens)
        if text.endswith(_REPLACEMENT):
            return False
        seen = self._tail + text[len(read) :]
        self._tokens = self._tokens[self._num_read :]
        self._num_read = len(self._tokens)
        self._tail = seen[max(len(seen) - self._tail_chars, 0) :]
        return any(stop in seen for stop in self._stop_strings)
