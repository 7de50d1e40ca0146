"""What the grammars of calls admit is what the parsers read: random walks through each grammar."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from trunkline.engine.answers.format import (
    ModelFamily,
    ToolFormat,
    answer_format,
    tool_grammar,
)
from trunkline.engine.answers.pieces import CallArguments, CallBegins
from trunkline.engine.answers.reasoning import THINK
from trunkline.engine.requests.tools import FunctionTool, ToolMode, ToolUse

END = "<|end|>"
MARKERS = ["<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]"]
# Tokens that reach over the seams between a call's frame and its arguments.
LONG_TOKENS = ["}}", '"}', '"}}', '{"', '":', '",', "}\n", "ĠĠ", "get", "_weather", "}]", 'Ġ{"']

WEATHER = FunctionTool(
    name="get_weather",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", 'the "City"', "São Paulo"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "places": {"type": "array", "items": {"$ref": "#/$defs/place"}, "maxItems": 2},
        },
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"place": {"type": "string", "maxLength": 3}},
    },
    strict=True,
)
GET = FunctionTool(
    name="get", parameters={"properties": {"is_new": {"type": "boolean"}},
                            "additionalProperties": False}
)  # fmt: skip
CLOCK = FunctionTool(name="clock", parameters={"type": "object", "additionalProperties": False})
TOOLS = (WEATHER, GET, CLOCK)

formats = pytest.mark.parametrize("tool_format", list(ToolFormat))


def tokenizer(markers: Sequence[str]) -> Tokenizer:
    """Bytes, a few longer tokens, the end, and `markers`, some of which are special."""
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for token in LONG_TOKENS:
        vocabulary[token.replace("\n", "Ċ")] = len(vocabulary)
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(END, special=True)])
    built.add_tokens(
        [AddedToken(m, special="tool_call" not in m, normalized=False) for m in markers]
    )
    return built


WITH_MARKERS = tokenizer(MARKERS)
WITHOUT_MARKERS = tokenizer([])


def family_of(tool_format: ToolFormat, words: Tokenizer) -> ModelFamily:
    return ModelFamily(tool_format, vocabulary=words.get_vocab())


def walk(grammar: str, words: Tokenizer, rng: random.Random, max_tokens: int = 600) -> str:
    """A text of random tokens that the grammar allows, up to where it lets the answer end."""
    end = words.token_to_id(END)
    matcher = LLMatcher(LLTokenizer(words.to_str(), eos_token=end), grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        mask = matcher.compute_bitmask()
        allowed = [i for i in range(words.get_vocab_size()) if mask[i // 8] >> (i % 8) & 1]
        token = rng.choice(allowed)
        if token == end:
            break
        assert matcher.consume_token(token), matcher.get_error()
        tokens.append(token)
        if matcher.is_stopped():
            break
    assert matcher.is_accepting(), words.decode(tokens)
    return words.decode(tokens, skip_special_tokens=False)


def objects_in(text: str) -> list[Any]:
    """The JSON values in a text, and between them what cannot begin one."""
    values, at = [], 0
    while (found := re.compile(r"\{").search(text, at)) is not None:
        value, at = json.JSONDecoder().raw_decode(text, found.start())
        values.append(value)
    return values


def calls_written(tool_format: ToolFormat, text: str) -> list[tuple[str, Any]]:
    """The calls in a well-formed text, read in a way that has nothing to do with the parsers."""
    if tool_format is ToolFormat.MISTRAL_NAMED:
        heads = re.findall(r"\[TOOL_CALLS\]([a-z_]+)\[ARGS\]", text)
        return list(zip(heads, objects_in(text), strict=True))
    key = "parameters" if tool_format is ToolFormat.LLAMA3 else "arguments"
    assert all(list(value) == ["name", key] for value in objects_in(text))
    return [(value["name"], value[key]) for value in objects_in(text)]


def calls_read(family: ModelFamily, tool_use: ToolUse, text: str) -> list[tuple[str, Any]]:
    """The calls that the family's parser finds; there must be nothing else."""
    parser = answer_format(replace(family, think_tags=None), tool_use, False).parser()
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in [*(p for char in text for p in parser.push(char)), *parser.finish()]:
        assert isinstance(piece, (CallBegins, CallArguments)), (piece, text)
        if isinstance(piece, CallBegins):
            names[piece.index] = piece.name
        else:
            arguments[piece.index] = arguments.get(piece.index, "") + piece.text
    return [(names[index], json.loads(arguments[index])) for index in names]


@formats
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("words", [WITH_MARKERS, WITHOUT_MARKERS], ids=["tokens", "text"])
def test_what_the_grammar_admits_is_read_back(
    tool_format: ToolFormat, parallel: bool, words: Tokenizer
) -> None:
    family = family_of(tool_format, words)
    tool_use = ToolUse(TOOLS, TOOLS, ToolMode.REQUIRED, parallel=parallel)
    grammar = tool_grammar(family, tool_use)
    rng = random.Random(7)
    schemas: Mapping[str, Any] = {tool.name: tool.parameters for tool in TOOLS}
    called: set[str] = set()
    num_calls: set[int] = set()
    for _ in range(25):
        text = walk(grammar, words, rng)
        calls = calls_read(family, tool_use, text)
        assert calls == calls_written(tool_format, text), text
        for name, arguments in calls:
            jsonschema.validate(arguments, schemas[name])
        called.update(name for name, _ in calls)
        num_calls.add(len(calls))
    assert called == set(schemas)
    assert min(num_calls) == 1
    assert (max(num_calls) > 1) == parallel


@formats
def test_a_named_choice_admits_that_tool_alone(tool_format: ToolFormat) -> None:
    family = family_of(tool_format, WITH_MARKERS)
    tool_use = ToolUse(TOOLS, (CLOCK,), ToolMode.REQUIRED)
    text = walk(tool_grammar(family, tool_use), WITH_MARKERS, random.Random(3))
    assert {name for name, _ in calls_read(family, tool_use, text)} == {"clock"}


EXAMPLES = {
    ToolFormat.HERMES: '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n'
    '</tool_call>\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
    ToolFormat.LLAMA3: '{"name": "get_weather", "parameters": {"city": "Paris"}}; '
    '{"name": "clock", "parameters": {}}',
    ToolFormat.MISTRAL: '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}, '
    '{"name": "clock", "arguments": {}}]',
    ToolFormat.MISTRAL_NAMED: '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'
    "[TOOL_CALLS]clock[ARGS]{}",
}


def admits(grammar: str, text: str) -> bool:
    """Whether the grammar allows just this text, in the tokens that the tokenizer gives it."""
    end = WITH_MARKERS.token_to_id(END)
    matcher = LLMatcher(LLTokenizer(WITH_MARKERS.to_str(), eos_token=end), grammar, log_level=0)
    tokens = WITH_MARKERS.encode(text).ids
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@formats
def test_what_the_chat_templates_write_is_admitted(tool_format: ToolFormat) -> None:
    family = family_of(tool_format, WITH_MARKERS)
    tool_use = ToolUse(TOOLS, TOOLS, ToolMode.REQUIRED)
    text = EXAMPLES[tool_format]
    assert admits(tool_grammar(family, tool_use), text)
    assert not admits(tool_grammar(family, replace(tool_use, parallel=False)), text)
    assert not admits(tool_grammar(family, tool_use), "It is 12:00.")
    assert not admits(tool_grammar(family, tool_use), text.replace("Paris", "Rome"))
    assert calls_read(family, tool_use, text) == [("get_weather", {"city": "Paris"}), ("clock", {})]


def test_newlines_between_reasoning_and_calls() -> None:
    tool_use = ToolUse(TOOLS, TOOLS, ToolMode.REQUIRED)
    text = EXAMPLES[ToolFormat.HERMES]
    plain = family_of(ToolFormat.HERMES, WITH_MARKERS)
    thinks = replace(plain, think_tags=THINK)
    assert admits(tool_grammar(thinks, tool_use), text)
    assert admits(tool_grammar(thinks, tool_use), f"\n\n{text}")
    assert not admits(tool_grammar(plain, tool_use), f"\n\n{text}")


@formats
def test_only_strict_tools_insist_on_the_whole_schema(tool_format: ToolFormat) -> None:
    schema = {"type": "object", "properties": {}, "if": {"required": ["a"]}, "then": False}
    loose = FunctionTool(name="f", parameters=schema)
    strict = replace(loose, strict=True)
    family = ModelFamily(tool_format)
    for tool, wanted in ((loose, ""), (strict, "Unimplemented keys")):
        grammar = tool_grammar(family, ToolUse((tool,), (tool,), ToolMode.REQUIRED))
        error = LLMatcher.validate_grammar(grammar)
        assert wanted in error
        assert bool(error) == bool(wanted)


def test_no_tool_may_be_called() -> None:
    with pytest.raises(ValueError, match="no tool that may be called"):
        tool_grammar(ModelFamily(ToolFormat.HERMES), ToolUse(TOOLS, (), ToolMode.REQUIRED))
