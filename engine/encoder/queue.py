"""The inputs that wait for an encoder: identical ones once, and batches of about one length.

All rows of a batch are padded to its longest. So a batch begins with the most urgent input, the
longest of them, and takes those that are nearest to it in length, while they fit the token budget
and little would be padding.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from trunkline.engine.encoder.model import EncoderInput
from trunkline.engine.encoder.sequence import EncoderSequence, InputKey

# Inputs that are looked through for a batch, from the most urgent one on.
WINDOW = 2048
# Of a batch's tokens, padding included. A small batch may have more: its arithmetic is not what
# it costs.
MAX_PADDING_SHARE = 0.1
SMALL_BATCH_TOKENS = 512
# New inputs that are put in their places one by one; more are sorted with all the others.
MOST_TO_INSERT = 64


@dataclass(eq=False)
class Waiting:
    """An input and the sequences that wait for it, at least one."""

    sequences: list[EncoderSequence]
    input: EncoderInput = field(init=False)
    key: InputKey = field(init=False)
    order: tuple[int, float, int] = field(init=False)  # the least runs first
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        first = self.sequences[0]
        self.input = first.input
        self.key = first.key
        self.order = _order(first)
        self.num_tokens = len(first.prompt)


class InputQueue:
    """Inputs in the order in which they will run."""

    def __init__(self, max_batch_tokens: int) -> None:
        """Make batches of at most `max_batch_tokens`, padding included, or of one input."""
        self.num_sequences = 0
        self._max_batch_tokens = max_batch_tokens
        self._waiting: list[Waiting] = []  # by `order`
        self._by_key: dict[InputKey, Waiting] = {}

    def add(self, sequences: Iterable[EncoderSequence]) -> None:
        """Put `sequences` into the queue; those whose input waits already are attached to it."""
        added: list[Waiting] = []
        for sequence in sequences:
            self.num_sequences += 1
            same = self._by_key.get(sequence.key)
            if same is not None and same.order <= _order(sequence):
                same.sequences.append(sequence)
            else:  # new, or too urgent to wait for its like
                self._by_key[sequence.key] = waiting = Waiting([sequence])
                added.append(waiting)
        if len(added) <= MOST_TO_INSERT:
            for waiting in added:
                bisect.insort(self._waiting, waiting, key=_by_order)
        else:
            self._waiting += added
            self._waiting.sort(key=_by_order)

    def drop(self, request_ids: Set[int]) -> None:
        """Forget the sequences of these requests."""
        for waiting in self._waiting:
            kept = [s for s in waiting.sequences if s.request_id not in request_ids]
            waiting.sequences = kept
            if not kept:
                self._close(waiting)
        self._waiting = [waiting for waiting in self._waiting if waiting.sequences]
        self.num_sequences = sum(len(waiting.sequences) for waiting in self._waiting)

    def pop_batch(self) -> list[Waiting]:
        """Take the next batch; it is empty only if nothing waits."""
        window = self._waiting[:WINDOW]
        batch: list[Waiting] = []
        longest = num_tokens = 0
        for waiting in sorted(window, key=lambda w: abs(w.num_tokens - window[0].num_tokens)):
            longest = max(longest, waiting.num_tokens)
            num_tokens += waiting.num_tokens
            if batch and not self._may_be_batch(longest * (len(batch) + 1), num_tokens):
                break
            batch.append(waiting)
        for waiting in batch:
            self._close(waiting)
            self.num_sequences -= len(waiting.sequences)
        taken = set(batch)
        self._waiting[:WINDOW] = [waiting for waiting in window if waiting not in taken]
        return batch

    def _may_be_batch(self, num_padded_tokens: int, num_tokens: int) -> bool:
        """Whether several inputs with so many tokens, with and without padding, run together."""
        if num_padded_tokens > self._max_batch_tokens:
            return False
        num_padding = num_padded_tokens - num_tokens
        is_small = num_padded_tokens <= SMALL_BATCH_TOKENS
        return is_small or num_padding <= MAX_PADDING_SHARE * num_padded_tokens

    def _close(self, waiting: Waiting) -> None:
        """Nothing is attached to `waiting` any more."""
        if self._by_key.get(waiting.key) is waiting:
            del self._by_key[waiting.key]


def _by_order(waiting: Waiting) -> tuple[int, float, int]:
    return waiting.order


def _order(sequence: EncoderSequence) -> tuple[int, float, int]:
    return -sequence.priority, sequence.deadline, -len(sequence.prompt)
