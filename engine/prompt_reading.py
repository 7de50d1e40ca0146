"""What is kept of the rows that the model computes for a prompt, beside the next token.

Log-probabilities of a prompt's own tokens ask for the logits of all its rows; an embedding asks for
the mean of their hidden states, or for one of them. Rows of a shared prefix are computed once, for
all sequences below it, and so what is read from them goes to all of these. For this to be complete
sequences that read share prefixes only with those that read the same and were planned with them
(`Sequence.sharing_group`): whoever computes a prefix then knows all who will want it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]


class Pooling(StrEnum):
    """Which rows of a prompt its embedding is made of."""

    MEAN = "mean"
    FIRST = "cls"
    LAST = "last"


@dataclass(frozen=True)
class PromptReading:
    """What a sequence wants to know. One of the two is not None."""

    # The log-probability of every prompt token, and of so many most likely ones in its place.
    num_top_logprobs: int | None = None
    pooling: Pooling | None = None

    def pooled_rows(self, start: int, end: int, num_prompt_tokens: int) -> tuple[int, int]:
        """Those of the positions [start, end) that the embedding is made of; may be empty."""
        if self.pooling is Pooling.FIRST:
            return start, min(end, max(start, 1))
        if self.pooling is Pooling.LAST:
            return max(start, min(end, num_prompt_tokens - 1)), end
        return start, end


@dataclass
class PromptRecord:
    """What has been read of one prompt.

    ``num_read``: positions from 0 on whose rows have been computed, or are in a step in flight.
    """

    logprobs: Float32Array  # [num_prompt_tokens] of each token, NaN for the first
    top_ids: NDArray[np.int32]  # [num_prompt_tokens, num_top] most likely first
    top_logprobs: Float32Array  # [num_prompt_tokens, num_top]
    num_read: int = 0
    pooled: Float32Array | None = None  # [hidden] sum of the rows
    num_pooled: int = field(default=0)  # rows

    @classmethod
    def empty(cls, reading: PromptReading, num_prompt_tokens: int) -> PromptRecord:
        """Of a prompt of which nothing has been read."""
        num_top = reading.num_top_logprobs or 0
        num_rows = 0 if reading.num_top_logprobs is None else num_prompt_tokens
        return cls(
            logprobs=np.full(num_rows, np.nan, np.float32),
            top_ids=np.zeros((num_rows, num_top), np.int32),
            top_logprobs=np.full((num_rows, num_top), np.nan, np.float32),
        )

    def add_pooled(self, total: Float32Array, num_rows: int) -> None:
        """Add the sum of `num_rows` further rows, [hidden]."""
        self.pooled = total if self.pooled is None else self.pooled + total
        self.num_pooled += num_rows

    @property
    def embedding(self) -> Float32Array:
        """[hidden] the mean of the rows that the pooling takes."""
        assert self.pooled is not None, "the prompt has been computed"
        return self.pooled / np.float32(self.num_pooled)
