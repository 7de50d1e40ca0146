"""Reasoning at the beginning of answers, whole, cut anywhere and truncated."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.engine.answers.pieces import CallArguments, CallBegins, Content, Piece, Reasoning
from trunkline.engine.answers.reasoning import BRACKETED_THINK, THINK, ReasoningParser
from trunkline.engine.answers.tool_formats.hermes import HermesParser


def parser(*, starts_thinking: bool = False) -> ReasoningParser:
    return ReasoningParser(HermesParser({"f"}), THINK, starts_thinking=starts_thinking)


def read(reader: ReasoningParser, parts: Sequence[str]) -> tuple[str, str]:
    """The reasoning and the content; the first stands before the second."""
    pieces = [*(piece for part in parts for piece in reader.push(part)), *reader.finish()]
    kinds = [isinstance(piece, Content) for piece in pieces]
    assert kinds == sorted(kinds)
    return _text(pieces, Reasoning), _text(pieces, Content)


def _text(pieces: Sequence[Piece], kind: type[Reasoning | Content]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, kind))


@pytest.mark.parametrize(
    ("text", "starts_thinking", "reasoning", "content"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", False, "Hm.", "Yes."),
        ("\n<think>Hm.</think>Yes.", False, "Hm.", "Yes."),
        ("Hm.\n</think>\n\nYes.", True, "Hm.", "Yes."),
        ("<think>\nHm.\n</think>\n\nYes.", True, "Hm.", "Yes."),
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("\n</think>\n\nYes.", True, "", "Yes."),
        ("<think>\nA.\n\nB < C.\n", False, "A.\n\nB < C.", ""),
        ("Hm", True, "Hm", ""),
        ("Hm </thi", True, "Hm </thi", ""),
        ("<thi", True, "<thi", ""),
        ("<thi", False, "", "<thi"),
        (" \nYes. ", False, "", " \nYes. "),
        ("Yes. <think>No.</think>", False, "", "Yes. <think>No.</think>"),
        ("<think>A</think>B</think>C<think>", False, "A", "B</think>C<think>"),
        ("<think>Hm.</think> \n", False, "Hm.", ""),
        ("", True, "", ""),
        (" ", False, "", " "),
    ],
)
def test_reasoning_and_content(
    text: str, starts_thinking: bool, reasoning: str, content: str
) -> None:
    for parts in ([text], list(text)):
        assert read(parser(starts_thinking=starts_thinking), parts) == (reasoning, content)


def test_brackets_as_of_magistral() -> None:
    reader = ReasoningParser(HermesParser(set()), BRACKETED_THINK, starts_thinking=False)
    assert read(reader, ["[THINK]Hm.[/THINK]Yes."]) == ("Hm.", "Yes.")


def test_calls_behind_reasoning_are_read_and_calls_in_it_are_not() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    reader = parser()
    pieces = [*reader.push(f"<think>\n{call}\n</think>\n\n{call}"), *reader.finish()]
    assert pieces == [Reasoning(call), CallBegins(0, "f"), CallArguments(0, "{}")]


def test_text_is_passed_on_at_once() -> None:
    reader = parser()
    assert reader.push("<think>") == []
    assert reader.push("\nHm") == [Reasoning("Hm")]
    assert reader.push(". \n") == [Reasoning(".")]
    assert reader.push("So") == [Reasoning(" \nSo")]
    assert reader.push("</think>\n") == []
    assert reader.push("\nYes") == [Content("Yes")]


FRAGMENTS = ["<think>", "</think>", "<", "</", "think>", "\n", " ", "Hm", "é", "<thi"]


@settings(max_examples=100, deadline=None)
@given(
    text=st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join),
    starts_thinking=st.booleans(),
    data=st.data(),
)
def test_any_text_is_read_alike_however_it_is_cut(
    text: str, starts_thinking: bool, data: st.DataObject
) -> None:
    whole = read(parser(starts_thinking=starts_thinking), [text])
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    parts = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    assert read(parser(starts_thinking=starts_thinking), parts) == whole
    assert read(parser(starts_thinking=starts_thinking), list(text)) == whole
    # Nothing but whitespace and the tags around the reasoning is left out.
    kept = "".join("".join(whole).split())
    assert len(kept) >= len("".join(text.split())) - len("<think></think>")
