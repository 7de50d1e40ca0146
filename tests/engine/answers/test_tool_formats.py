"""Calls in the text of answers: each format, whole, cut anywhere, truncated, malformed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.engine.answers.pieces import (
    AnswerParser,
    CallArguments,
    CallBegins,
    Content,
    Piece,
)
from trunkline.engine.answers.tool_formats.hermes import HermesParser
from trunkline.engine.answers.tool_formats.llama3 import Llama3Parser
from trunkline.engine.answers.tool_formats.mistral import MistralParser

NAMES = frozenset({"get_weather", "search", "f"})

Call = tuple[str, str]  # name, arguments

quick = settings(max_examples=30, deadline=None)


def read(parser: AnswerParser, parts: Sequence[str]) -> list[Piece]:
    """All pieces of a text, those that belong together joined."""
    joined: list[Piece] = []
    for piece in [*(p for part in parts for p in parser.push(part)), *parser.finish()]:
        last = joined[-1] if joined else None
        if isinstance(piece, Content) and isinstance(last, Content):
            joined[-1] = Content(last.text + piece.text)
        elif isinstance(piece, CallArguments) and isinstance(last, CallArguments):
            assert piece.index == last.index
            joined[-1] = replace(last, text=last.text + piece.text)
        else:
            joined.append(piece)
    return joined


def content_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Content))


def calls_of(pieces: Sequence[Piece]) -> list[Call]:
    names = [piece.name for piece in pieces if isinstance(piece, CallBegins)]
    arguments = {piece.index: piece.text for piece in pieces if isinstance(piece, CallArguments)}
    return [(name, arguments.get(index, "")) for index, name in enumerate(names)]


def hermes(calls: Sequence[Call]) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
        for name, arguments in calls
    )


def llama3(calls: Sequence[Call]) -> str:
    return "; ".join(f'{{"name": "{name}", "parameters": {args}}}' for name, args in calls)


def llama3_tagged(calls: Sequence[Call]) -> str:
    return f"<|python_tag|>{llama3(calls)}"


def mistral_list(calls: Sequence[Call]) -> str:
    objects = [f'{{"name": "{name}", "arguments": {args}}}' for name, args in calls]
    return f"[TOOL_CALLS] [{', '.join(objects)}]"


def mistral_named(calls: Sequence[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in calls)


def mistral_without_args_token(calls: Sequence[Call]) -> str:
    return mistral_named(calls).replace("[ARGS]", "")


def mistral_with_ids(calls: Sequence[Call]) -> str:
    return mistral_named(calls).replace("[ARGS]", "[CALL_ID]aB3dE5gH7[ARGS]")


Write = Callable[[Sequence[Call]], str]
FORMATS: list[tuple[Write, type[HermesParser | Llama3Parser | MistralParser]]] = [
    (hermes, HermesParser),
    (llama3, Llama3Parser),
    (llama3_tagged, Llama3Parser),
    (mistral_list, MistralParser),
    (mistral_named, MistralParser),
    (mistral_without_args_token, MistralParser),
    (mistral_with_ids, MistralParser),
]
all_formats = pytest.mark.parametrize(
    ("write", "parser"), FORMATS, ids=[write.__name__ for write, _ in FORMATS]
)
with_text_before = pytest.mark.parametrize(
    ("write", "parser"),
    [(write, parser) for write, parser in FORMATS if write is not llama3],
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(
        ['"', "\\", "}", "</tool_call>", "[TOOL_CALLS]", "; {", "<|python_tag|>", "[ARGS]{"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def _dumped(arguments: dict[str, Any], indent: int | None, ensure_ascii: bool) -> str:
    return json.dumps(arguments, indent=indent, ensure_ascii=ensure_ascii)


arguments_texts = st.builds(
    _dumped,
    st.dictionaries(st.text(max_size=6), json_values, max_size=4),
    st.sampled_from([None, 2]),
    st.booleans(),
).filter(lambda text: "[ARGS]" not in text)  # one of the formats is written by replacing it
call_lists = st.lists(
    st.tuples(st.sampled_from(sorted(NAMES)), arguments_texts), min_size=1, max_size=3
)


@all_formats
@quick
@given(calls=call_lists, data=st.data())
def test_calls_are_read_as_they_were_written(
    write: Write, parser: type[HermesParser], calls: list[Call], data: st.DataObject
) -> None:
    text = write(calls)
    parts = _cut(text, data)
    pieces = read(parser(NAMES), parts)
    assert calls_of(pieces) == calls
    assert content_of(pieces) == ""


@all_formats
@quick
@given(calls=call_lists, data=st.data())
def test_a_truncated_answer_keeps_what_there_is(
    write: Write, parser: type[HermesParser], calls: list[Call], data: st.DataObject
) -> None:
    text = write(calls)
    end = data.draw(st.integers(0, len(text)))
    pieces = read(parser(NAMES), [text[:end]])
    found = calls_of(pieces)
    assert found[:-1] == calls[: max(len(found) - 1, 0)]
    if found:
        name, arguments = calls[len(found) - 1]
        assert found[-1][0] == name
        assert arguments.startswith(found[-1][1])
    else:
        assert content_of(pieces) == text[:end]


@with_text_before
@quick
@given(calls=call_lists, text=st.text(st.characters(exclude_characters="{"), max_size=20))
def test_text_before_calls_is_content(
    write: Write, parser: type[HermesParser], calls: list[Call], text: str
) -> None:
    pieces = read(parser(NAMES), [f"{text}\n{write(calls)}"])
    assert content_of(pieces) == text.rstrip(" \t\r\n")
    assert calls_of(pieces) == calls


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[",
    "]", "{", "}", '"name"', '"arguments"', '"parameters"', ":", ", ", '"f"', '"nope"', "f", "\n",
    " ", ";", "null", "1", "text", '{"name": "f", "arguments": ', '{"name": "f"', '{"a": 1}', '"',
    "\\", "<tool", "[TOOL", "é", '"{}"', "</", "9x",
]  # fmt: skip
fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


@pytest.mark.parametrize("parser", [HermesParser, Llama3Parser, MistralParser])
@quick
@given(text=fragments, data=st.data())
def test_any_text_is_read_alike_however_it_is_cut(
    parser: type[HermesParser], text: str, data: st.DataObject
) -> None:
    whole = read(parser(NAMES), [text])
    assert read(parser(NAMES), list(text)) == whole
    assert read(parser(NAMES), _cut(text, data)) == whole


@pytest.mark.parametrize("parser", [HermesParser, Llama3Parser, MistralParser])
@quick
@given(text=fragments)
def test_without_a_call_all_text_is_content(parser: type[HermesParser], text: str) -> None:
    pieces = read(parser(frozenset({"unwritten"})), [text])
    assert pieces == ([Content(text)] if text else [])


CASES: list[tuple[str, type[Any], str, list[Call], str]] = [
    ("text after a call", HermesParser, hermes([("f", "{}")]) + "\nDone.", [("f", "{}")], "Done."),
    (
        "text on both sides of a call",
        HermesParser,
        f"First.\n{hermes([('f', '{}')])}\nDone.",
        [("f", "{}")],
        "First.\nDone.",
    ),
    (
        "an unknown tool",
        HermesParser,
        hermes([("nope", '{"a": 1}')]),
        [],
        hermes([("nope", '{"a": 1}')]),
    ),
    (
        "an unknown tool before a known one",
        HermesParser,
        hermes([("nope", "{}"), ("f", "{}")]),
        [("f", "{}")],
        hermes([("nope", "{}")]),
    ),
    (
        "the arguments before the name",
        HermesParser,
        '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>',
        [("f", '{"a": 1}')],
        "",
    ),
    (
        "arguments in a string",
        HermesParser,
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        [("f", '{"a": 1}')],
        "",
    ),
    (
        "arguments that are some other string",
        HermesParser,
        '<tool_call>{"name": "f", "arguments": "Paris"}</tool_call>',
        [("f", '"Paris"')],
        "",
    ),
    (
        "arguments null",
        HermesParser,
        '<tool_call>{"name": "f", "arguments": null}</tool_call>',
        [("f", "{}")],
        "",
    ),
    ("no arguments", HermesParser, '<tool_call>{"name": "f"}</tool_call>', [("f", "{}")], ""),
    ("truncated behind the name", HermesParser, '<tool_call>{"name": "f", "ar', [("f", "")], ""),
    ("truncated in the name", HermesParser, '<tool_call>{"name": "f', [], '<tool_call>{"name": "f'),
    (
        "a bracket too few",
        HermesParser,
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}\n</tool_call>\n' + hermes([("f", "{}")]),
        [("f", '{"a": 1}'), ("f", "{}")],
        "",
    ),
    (
        "two brackets too few",
        HermesParser,
        '<tool_call>\n{"name": "f", "arguments": {"a": 1</tool_call>\n' + hermes([("f", "{}")]),
        [("f", '{"a": 1'), ("f", "{}")],
        "",
    ),
    (
        "a bracket too many",
        HermesParser,
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}}\n</tool_call>',
        [("f", '{"a": 1}')],
        "",
    ),
    (
        "two calls in a pair of tags",
        HermesParser,
        '<tool_call>{"name": "f", "arguments": {}}{"name": "search", "arguments": {}}</tool_call>',
        [("f", "{}"), ("search", "{}")],
        "",
    ),
    (
        "no closing tag",
        HermesParser,
        '<tool_call>\n{"name": "f", "arguments": {}}\n' + hermes([("search", "{}")]),
        [("f", "{}"), ("search", "{}")],
        "",
    ),
    (
        "something else in the tags",
        HermesParser,
        '<tool_call>{"name": "f", "arguments": {}} # easy\n</tool_call>\nDone.',
        [("f", "{}")],
        "# easy\n\nDone.",
    ),
    (
        "tags without an object",
        HermesParser,
        "Write <tool_call> and </tool_call>.",
        [],
        "Write <tool_call> and </tool_call>.",
    ),
    (
        "a tag and no call before a call",
        HermesParser,
        "<tool_call>\n" + hermes([("f", "{}")]),
        [("f", "{}")],
        "<tool_call>",
    ),
    (
        "a call that breaks off before a call",
        HermesParser,
        '<tool_call>\n{"name": "f\n' + hermes([("f", "{}")]),
        [("f", "{}")],
        '<tool_call>\n{"name": "f',
    ),
    ("the beginning of a tag", HermesParser, "a <tool_c", [], "a <tool_c"),
    ("whitespace at the end", HermesParser, "Hello. \n", [], "Hello. \n"),
    (
        "an answer in JSON",
        Llama3Parser,
        '{"name": "Ada", "parameters": {"a": 1}}',
        [],
        '{"name": "Ada", "parameters": {"a": 1}}',
    ),
    (
        "an answer in JSON with the name of a tool",
        Llama3Parser,
        '{"name": "search", "language": "en"}',
        [],
        '{"name": "search", "language": "en"}',
    ),
    (
        "an answer in JSON that goes on like a call",
        Llama3Parser,
        '{"query": "x", "name": "search", "parameters": {}}',
        [],
        '{"query": "x", "name": "search", "parameters": {}}',
    ),
    (
        "an object in the middle of text",
        Llama3Parser,
        f"So: {llama3([('f', '{}')])}",
        [],
        f"So: {llama3([('f', '{}')])}",
    ),
    (
        "a type member, as of Llama 3.2",
        Llama3Parser,
        '{"type": "function", "name": "f", "parameters": {"a": 1}}',
        [("f", '{"a": 1}')],
        "",
    ),
    (
        "arguments under the name of the other formats",
        Llama3Parser,
        '{"name": "f", "arguments": {"a": 1}}',
        [("f", '{"a": 1}')],
        "",
    ),
    (
        "a built-in tool",
        Llama3Parser,
        '<|python_tag|>brave_search.call(query="x")',
        [],
        '<|python_tag|>brave_search.call(query="x")',
    ),
    (
        "a tag before each call",
        Llama3Parser,
        f"{llama3_tagged([('f', '{}')])};{llama3_tagged([('search', '{}')])}",
        [("f", "{}"), ("search", "{}")],
        "",
    ),
    (
        "a separator and no more",
        Llama3Parser,
        llama3([("f", "{}")]) + "; ",
        [("f", "{}")],
        "",
    ),
    (
        "another object behind a call",
        Llama3Parser,
        llama3([("f", "{}")]) + '; {"b": 2}',
        [("f", "{}")],
        '; {"b": 2}',
    ),
    (
        "an identifier, as of the templates of Mistral 7B v0.3",
        MistralParser,
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "aB3dE5gH7"}]',
        [("f", '{"a": 1}')],
        "",
    ),
    (
        "a single object",
        MistralParser,
        '[TOOL_CALLS]{"name": "f", "arguments": {}}',
        [("f", "{}")],
        "",
    ),
    ("an empty list", MistralParser, "[TOOL_CALLS] []", [], "[TOOL_CALLS] []"),
    (
        "text behind a list",
        MistralParser,
        mistral_list([("f", "{}")]) + " Done.",
        [("f", "{}")],
        "Done.",
    ),
    (
        "an unknown tool by name",
        MistralParser,
        mistral_named([("nope", "{}"), ("f", "{}")]),
        [("f", "{}")],
        mistral_named([("nope", "{}")]),
    ),
    (
        "an unknown tool in a list",
        MistralParser,
        mistral_list([("nope", "{}")]),
        [],
        mistral_list([("nope", "{}")]),
    ),
    (
        "text that is no name",
        MistralParser,
        "[TOOL_CALLS]f is a tool",
        [],
        "[TOOL_CALLS]f is a tool",
    ),
    (
        "a marker and no call before a call",
        MistralParser,
        "[TOOL_CALLS] " + mistral_named([("f", "{}")]),
        [("f", "{}")],
        "[TOOL_CALLS]",
    ),
    ("truncated behind [ARGS]", MistralParser, "[TOOL_CALLS]f[ARGS]", [("f", "")], ""),
    (
        "truncated in the identifier",
        MistralParser,
        "[TOOL_CALLS]f[CALL_ID]aB",
        [],
        "[TOOL_CALLS]f[CALL_ID]aB",
    ),
]


@pytest.mark.parametrize(
    ("parser", "text", "calls", "content"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_what_models_write(parser: type[Any], text: str, calls: list[Call], content: str) -> None:
    for parts in ([text], list(text)):
        pieces = read(parser(NAMES), parts)
        assert calls_of(pieces) == calls
        assert content_of(pieces) == content


@all_formats
def test_arguments_are_passed_on_as_they_grow(write: Write, parser: type[HermesParser]) -> None:
    text = write([("f", '{"city": "Paris"}')])
    at = text.index("Paris") + 3
    reader = parser(NAMES)
    pieces = reader.push(text[:at])
    assert pieces[-2:] == [CallBegins(0, "f"), CallArguments(0, '{"city": "Par')]
    assert reader.push(text[at : at + 1]) == [CallArguments(0, "i")]


@pytest.mark.parametrize("parser", [HermesParser, Llama3Parser, MistralParser])
def test_content_is_passed_on_at_once(parser: type[HermesParser]) -> None:
    reader = parser(NAMES)
    assert reader.push("Hello") == [Content("Hello")]
    assert reader.push(" ") == []
    assert reader.push("you") == [Content(" you")]


def test_an_answer_in_json_is_passed_on_as_it_grows() -> None:
    reader = Llama3Parser(NAMES)
    assert reader.push('{"summ') == []
    assert reader.push('ary": "a') == [Content('{"summary": "a')]
    assert reader.push(" b") == [Content(" b")]


@all_formats
def test_only_the_first_call_when_they_are_not_parallel(
    write: Write, parser: type[HermesParser]
) -> None:
    text = write([("f", '{"a": 1}'), ("search", "{}")])
    pieces = read(parser(NAMES, parallel=False), list(text))
    assert pieces == [CallBegins(0, "f"), CallArguments(0, '{"a": 1}')]


def _cut(text: str, data: st.DataObject) -> list[str]:
    """`text` in parts of random lengths."""
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
