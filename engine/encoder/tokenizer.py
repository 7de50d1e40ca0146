"""A tokenizer for encoders: single texts and pairs of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.encoder.model import EncoderInput
from trunkline.engine.tokenizer import Tokenizer

# Files that hold a tokenizer's vocabulary.
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")


class EncoderTokenizer(Tokenizer):
    """An encoder's tokenizer. Its special tokens are added to texts and pairs alike."""

    def __init__(self, folder: Path, *, lowercases: bool) -> None:
        """Load the tokenizer in `folder`.

        Args:
            lowercases: texts are lower-cased first.

        Raises:
            OSError: there is none.
        """
        if not any(path for pattern in VOCABULARIES for path in folder.glob(pattern)):
            # Without one, transformers makes up a tokenizer that knows no word.
            raise OSError(f"{folder} has no vocabulary")
        super().__init__(folder)
        self._lowercases = lowercases
        # Some files cut and pad on their own. Set once: no call changes it for other threads.
        self._hf.backend_tokenizer.no_truncation()
        self._hf.backend_tokenizer.no_padding()

    def encode_texts(self, texts: Sequence[str]) -> list[EncoderInput]:
        """Each text as the model takes it, at its full length."""
        encoded = self.encode_many([self._cased(text) for text in texts], add_special_tokens=True)
        return [EncoderInput(tokens) for tokens in encoded]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[EncoderInput]:
        """Each pair as the model takes it, at its full length."""
        if not pairs:
            return []
        encoded = self._hf(
            [self._cased(first) for first, _ in pairs],
            [self._cased(second) for _, second in pairs],
            return_attention_mask=False,
        )
        tokens = [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]
        if "token_type_ids" not in encoded:
            return [EncoderInput(ids) for ids in tokens]
        return [
            EncoderInput(ids, _second_begins(np.array(types)))
            for ids, types in zip(tokens, encoded["token_type_ids"], strict=True)
        ]

    def _cased(self, text: str) -> str:
        return text.lower() if self._lowercases else text


def _second_begins(types: NDArray[np.int64]) -> int | None:
    ones = np.flatnonzero(types == 1)
    return int(ones[0]) if len(ones) else None
