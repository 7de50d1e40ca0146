"""A text to embed or a pair to score, as one of a request's sequences. It generates nothing."""

from __future__ import annotations

from dataclasses import dataclass

from trunkline.engine.encoder.model import EncoderInput
from trunkline.engine.sequence import Sequence

InputKey = tuple[bytes, int | None]


@dataclass(eq=False)
class EncoderSequence(Sequence):
    """A text, or a pair of texts.

    When it has finished, `record.embedding` is what `Encoder.run` made of it: a vector of
    [num_dimensions], or a cross-encoder's score of [1].
    """

    pair_start: int | None = None  # see EncoderInput

    @property
    def input(self) -> EncoderInput:
        return EncoderInput(self.prompt, self.pair_start)

    @property
    def key(self) -> InputKey:
        """Equal for inputs that have the same result."""
        return self.prompt.tobytes(), self.pair_start
