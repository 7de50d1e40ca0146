"""A tokenizer with a token for each letter, and the admission of an engine that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.admission import Admission, Limits
from trunkline.engine.grammar import Grammars
from trunkline.engine.pooling import PoolingConfig
from trunkline.engine.prompt_reading import Pooling

EOS = 0


class LetterTokenizer:
    """A token for each letter."""

    eos_token_ids = frozenset([EOS])
    vocab_size = 128
    chat_template = "{{ messages[0].content }}"
    vocabulary: Mapping[str, int] = {}

    def encode_many(
        self, texts: Sequence[str], *, add_special_tokens: bool
    ) -> list[NDArray[np.int32]]:
        return [np.array([ord(c) for c in text], np.int32) for text in texts]

    def render_chat(self, messages: Any, template_kwargs: Any = None, **_: Any) -> str:
        return "".join(message["content"] for message in messages)

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


def letter_admission(tokenizer: Any, capacity_tokens: int) -> Admission:
    """Admits requests of up to 200 tokens to an engine with a `LetterTokenizer`."""
    return Admission(
        tokenizer,
        Limits(200, capacity_tokens),
        Grammars(tokenizer, tokenizer.vocab_size),
        PoolingConfig(Pooling.LAST, normalizes=True),
        num_dimensions=4,
    )
