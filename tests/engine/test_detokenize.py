"""Stop strings and final text, with the default model's byte-level tokenizer."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from pathlib import Path

import numpy as np
import pytest

from trunkline.engine.detokenize import StopStringWatcher
from trunkline.engine.tokenizer import ChatTemplateError, Tokenizer

TEXT = (
    "Grüße, 世界! 👩‍👩‍👧 naïve café — tokens end inside characters: 🦊🐻🦁🐢. END of it\n\n  done"
)


@pytest.fixture(scope="module")
def tokenizer(smollm2_folder: Path) -> Tokenizer:
    return Tokenizer(smollm2_folder)


def stops_after(tokenizer: Tokenizer, ids: list[int], *stops: str) -> int | None:
    """How many tokens it takes until a stop string is seen."""
    watcher = StopStringWatcher(tokenizer, stops)
    return next((i for i, token in enumerate(ids, 1) if watcher.push(token)), None)


def first_with(tokenizer: Tokenizer, ids: list[int], *stops: str) -> int | None:
    texts = ((i, tokenizer.decode(ids[:i])) for i in range(1, len(ids) + 1))
    return next((i for i, text in texts if any(stop in text for stop in stops)), None)


@pytest.mark.parametrize(
    "stops",
    [
        ("END",),
        ("世",),
        ("界!",),
        ("👧",),
        ("👩‍👩‍👧 naïve",),
        ("n",),
        ("\n\n",),
        (" done", "🦁🐢."),
        ("Grüße, 世界! 👩‍👩‍👧 naïve café — tokens end inside",),
        ("absent",),
        ("ENDof",),
    ],
)
def test_a_stop_string_is_seen_as_soon_as_it_is_whole(
    tokenizer: Tokenizer, stops: tuple[str, ...]
) -> None:
    ids = tokenizer.encode_prompt(TEXT).tolist()
    assert len(ids) > len(TEXT) / 2  # many characters take several tokens
    assert stops_after(tokenizer, ids, *stops) == first_with(tokenizer, ids, *stops)


def test_a_token_is_decoded_with_the_few_before_it() -> None:
    """However long the text has become."""
    lengths: list[int] = []

    class Letters:
        def decode(self, token_ids: Tokens[int]) -> str:
            lengths.append(len(token_ids))
            return "".join(map(chr, token_ids))

    watcher = StopStringWatcher(Letters(), ("END",))
    assert not any(watcher.push(ord("a")) for _ in range(200))
    assert max(lengths) == 2


def test_token_bytes_make_up_the_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_prompt(TEXT).tolist()
    assert b"".join(map(tokenizer.token_bytes, ids)) == TEXT.encode()
    (end,) = tokenizer.eos_token_ids
    assert tokenizer.token_bytes(end) == b"<|im_end|>"


def test_encoding_many_is_encoding_each(tokenizer: Tokenizer) -> None:
    texts = [TEXT, "a", "two words", ""]
    found = tokenizer.encode_many(texts, add_special_tokens=True)
    for ids, text in zip(found, texts, strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == tokenizer.encode_prompt(text).tolist()
    assert tokenizer.encode_many([], add_special_tokens=False) == []


def test_chat_template(tokenizer: Tokenizer) -> None:
    text = tokenizer.render_chat([{"role": "user", "content": "Hi"}])
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer.encode_chat(text).tolist()
    assert tokenizer.eos_token_ids <= set(ids)  # special tokens in the text are recognised
    with pytest.raises(ChatTemplateError, match="chat template"):
        tokenizer.render_chat([{"role": "user"}, 3])  # type: ignore[list-item] # what is refused
