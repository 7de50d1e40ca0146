"""Stop strings and final text, with the default model's byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trunkline.engine.detokenize import StopStringWatcher, cut_at_stop, final_text
from trunkline.engine.sequence import SamplingParams, Sequence
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


def finished(tokenizer: Tokenizer, ids: list[int], **params: object) -> str:
    sampling = SamplingParams(max_tokens=99, **params)  # type: ignore[arg-type] # test shorthand
    return final_text(tokenizer, Sequence(0, 0, np.array([1], np.int32), sampling, output=ids))


def test_final_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_prompt(TEXT).tolist()
    (end,) = tokenizer.eos_token_ids
    assert finished(tokenizer, ids) == TEXT
    assert finished(tokenizer, [*ids, end], stop_token_ids=frozenset([end])) == TEXT
    assert finished(tokenizer, [*ids, end]) == TEXT  # a special token has no text
    assert finished(tokenizer, ids, stop_token_ids=frozenset([ids[-1]])) == TEXT.removesuffix(
        tokenizer.decode(ids[-1:])
    )
    assert finished(tokenizer, ids, stop_strings=("END",)) == TEXT[: TEXT.index("END")]
    assert finished(tokenizer, []) == ""


def test_the_stop_string_that_begins_first_cuts() -> None:
    assert cut_at_stop("one two three", ("three", "two")) == "one "
    assert cut_at_stop("one two three", ("four",)) == "one two three"
    assert cut_at_stop("one", ()) == "one"


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
