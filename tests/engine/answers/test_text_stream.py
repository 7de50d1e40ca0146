"""Text as it grows is the text at the end, however it is cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.engine.answers.text_stream import Detokenizer, TextStream
from trunkline.engine.sequence import SamplingParams

END = 256


class Bytes:
    """A token for each byte, one that ends the answer, and one more that is special."""

    eos_token_ids = frozenset([END])

    def decode(self, token_ids: Sequence[int], *, keep_special_tokens: bool = False) -> str:
        kept = [t for t in token_ids if keep_special_tokens or t < END]
        return b"".join(map(self.token_bytes, kept)).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < END else f"<{token_id}>".encode()


class Words:
    """Words whose space is written before them, but not at the start of a text."""

    eos_token_ids = frozenset([0])
    words = ("", "▁Hello", "▁world", "s", "▁", "!")

    def decode(self, token_ids: Sequence[int], *, keep_special_tokens: bool = False) -> str:
        assert not keep_special_tokens
        text = "".join(self.words[token] for token in token_ids)
        return text.replace("▁", " ").removeprefix(" ")

    def token_bytes(self, token_id: int) -> bytes:
        return self.words[token_id].replace("▁", " ").encode()


def streamed(
    tokens: list[int], cuts: list[int], sampling: SamplingParams, tokenizer: Detokenizer
) -> list[str]:
    stream = TextStream(tokenizer, sampling)
    bounds = [0, *sorted(min(cut, len(tokens)) for cut in cuts), len(tokens)]
    texts = [stream.push(tokens[a:b]) for a, b in itertools.pairwise(bounds)]
    return [*texts, stream.finish()]


def sampling(*stops: str) -> SamplingParams:
    return SamplingParams(99, stop_token_ids=frozenset([END]), stop_strings=stops)


texts = st.text("aab🦊é", max_size=12).map(lambda text: list(text.encode()))
noise = st.lists(st.sampled_from([97, 0xF0, 0x9F, 0xA6, 0x8A, END, 300]), max_size=12)
cuts = st.lists(st.integers(0, 40), max_size=20)
stop_strings = st.lists(st.text("aab🦊", min_size=1, max_size=4), max_size=3)


@settings(deadline=None)
@given(texts | noise, cuts, stop_strings)
def test_parts_add_up_to_the_whole(tokens: list[int], cuts: list[int], stops: list[str]) -> None:
    whole = tokens[:-1] if tokens[-1:] == [END] else tokens
    text = Bytes().decode(whole)
    end = min((text.index(stop) for stop in stops if stop in text), default=len(text))
    assert "".join(streamed(tokens, cuts, sampling(*stops), Bytes())) == text[:end]


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=10), cuts)
def test_spaces_before_words_are_kept(tokens: list[int], cuts: list[int]) -> None:
    found = streamed(tokens, cuts, SamplingParams(99), Words())
    assert "".join(found) == Words().decode(tokens)


def test_whole_characters_come_at_once() -> None:
    stream = TextStream(Bytes(), sampling())
    assert [stream.push([token]) for token in "é!".encode()] == ["", "é", "!"]
    assert stream.push("🦊".encode()[:2]) == ""
    assert stream.finish() == "\ufffd"


def test_no_beginning_of_a_stop_string_is_shown() -> None:
    stream = TextStream(Bytes(), sampling("END", "Nth"))
    assert [stream.push([ord(char)]) for char in "aENx"] == ["a", "", "", "ENx"]
    assert [stream.push([ord(char)]) for char in "bEND."] == ["b", "", "", "", ""]
    assert stream.finish() == ""


def test_what_was_held_back_comes_at_the_end() -> None:
    stream = TextStream(Bytes(), sampling("END"))
    assert stream.push(b"aEN") == "a"
    assert stream.finish() == "EN"


def test_a_stop_token_counts_as_text_unless_it_is_the_last() -> None:
    stops_at_a = SamplingParams(99, min_tokens=2, stop_token_ids=frozenset([97]))
    stream = TextStream(Bytes(), stops_at_a)
    assert [stream.push([token]) for token in b"aba"] == ["", "ab", ""]
    assert stream.finish() == ""


def test_special_tokens_are_kept_but_for_the_end() -> None:
    stream = TextStream(Bytes(), sampling(), keeps_special_tokens=True)
    assert stream.push([300, 97, END, 98, END]) == "<300>ab"
    assert stream.finish() == ""


def test_a_text_that_continues_its_prompt_begins_with_its_space() -> None:
    stream = TextStream(Words(), SamplingParams(99), context=[1])
    assert stream.push([2, 3]) == " worlds"
