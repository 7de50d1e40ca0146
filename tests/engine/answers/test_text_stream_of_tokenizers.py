"""Text as it grows, with tokenizers as models have them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from trunkline.engine.answers.text_stream import TextStream
from trunkline.engine.sequence import SamplingParams
from trunkline.engine.tokenizer import Tokenizer

TEXT = "Grüße, 世界! 👩‍👩‍👧 naïve café — tokens end inside characters: 🦊🐻🦁🐢.\n\n  done "


@pytest.fixture(scope="module")
def byte_level(smollm2_folder: Path) -> Tokenizer:
    return Tokenizer(smollm2_folder)


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As those of Llama 2 and Mistral: words with their spaces, and bytes of all else."""
    names = ["<unk>", "</s>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += ["▁", "a", "é", "▁a", "▁the", "ing", "!"]
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = Backend(
        models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", bos_token="<s>"
    ).save_pretrained(folder)
    return Tokenizer(folder)


def check_parts(tokenizer: Tokenizer, tokens: list[int], chance: random.Random) -> None:
    stream = TextStream(tokenizer, SamplingParams(1000))
    text, at = "", 0
    while at < len(tokens):
        upto = at + chance.choice([1, 1, 1, 2, 5])
        text += stream.push(tokens[at:upto])
        at = upto
    assert text + stream.finish() == tokenizer.decode(tokens)


def test_byte_level(byte_level: Tokenizer) -> None:
    chance = random.Random(1)
    check_parts(byte_level, byte_level.encode_prompt(TEXT).tolist(), chance)
    for _ in range(100):
        check_parts(byte_level, chance.choices(range(byte_level.vocab_size), k=20), chance)


def test_byte_fallback(byte_fallback: Tokenizer) -> None:
    chance = random.Random(1)
    check_parts(byte_fallback, [3 + byte for byte in TEXT.encode()], chance)
    # Whole characters, words, special tokens and bytes that are no character, in any order. The
    # latter stand between words: such a tokenizer takes back whole characters right before them.
    a = byte_fallback.vocabulary["a"]
    pieces = [[number] for number in [*range(3), *range(259, 266)]]
    pieces += [[3 + byte for byte in char.encode()] for char in "🦊é"]
    pieces += [[a, 3 + 0xF0, a], [a, 3 + 0x9F, 3 + 0xA6, a]]
    for _ in range(300):
        chosen = chance.choices(pieces, k=12)
        check_parts(byte_fallback, [token for piece in chosen for token in piece], chance)


def test_special_tokens_are_kept_where_they_are_markers(byte_level: Tokenizer) -> None:
    (end,) = byte_level.eos_token_ids
    (begin,) = byte_level.encode_chat("<|im_start|>").tolist()
    hello = byte_level.encode_prompt("Hello").tolist()
    stream = TextStream(byte_level, SamplingParams(9), keeps_special_tokens=True)
    assert stream.push([begin, *hello, end]) + stream.finish() == "<|im_start|>Hello"


def test_a_continuation_begins_with_its_space(byte_fallback: Tokenizer) -> None:
    the = byte_fallback.vocabulary["▁the"]
    plain = TextStream(byte_fallback, SamplingParams(9))
    assert plain.push([the]) == "the"
    behind = TextStream(byte_fallback, SamplingParams(9), context=[2, the])
    assert behind.push([the]) == " the"
