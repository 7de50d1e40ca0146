"""Which family a model is of, and how its answers are read for a request."""

from __future__ import annotations

import pytest

from trunkline.engine.answers.format import (
    AnswerFormat,
    ModelFamily,
    ToolFormat,
    answer_format,
    model_family,
)
from trunkline.engine.answers.pieces import CallArguments, CallBegins, Content, Piece, Reasoning
from trunkline.engine.answers.reasoning import BRACKETED_THINK, THINK, ThinkTags
from trunkline.engine.requests.tools import FunctionTool, ToolMode, ToolUse

F, G = FunctionTool("f"), FunctionTool("g")

# What tells the families apart, as their chat templates have it.
QWEN25 = """{{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}"""
QWEN3 = QWEN25 + "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}"
DEEPSEEK_DISTILL = "{% set content = content.split('</think>')[-1] %}{{'<think>\\n'}}"
LLAMA31 = """{{- "<|python_tag|>" + tool_call.name + ".call(" }}{{- '"parameters": ' }}"""
LLAMA32 = """{{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}"""
MISTRAL_7B = """{{- "[TOOL_CALLS] [" }}"""
SMALL_32 = """{{- "[TOOL_CALLS]" + name + "[CALL_ID]" + id + "[ARGS]" + arguments }}"""
MAGISTRAL = SMALL_32 + """{{- "[THINK]" + block["thinking"] + "[/THINK]" }}"""
CHATML = "{{'<|im_start|>' + message['role'] + '\\n' + message['content']}}"


@pytest.mark.parametrize(
    ("template", "vocabulary", "tool_format", "think_tags"),
    [
        (QWEN25, {"<tool_call>": 151657}, ToolFormat.HERMES, None),
        (QWEN3, {"<tool_call>": 151657, "<think>": 151667}, ToolFormat.HERMES, THINK),
        (DEEPSEEK_DISTILL, {}, ToolFormat.HERMES, THINK),
        (LLAMA31, {"<|python_tag|>": 128010}, ToolFormat.LLAMA3, None),
        (LLAMA32, {"<|python_tag|>": 128010}, ToolFormat.LLAMA3, None),
        (LLAMA32, {}, ToolFormat.HERMES, None),
        # Hermes 2 Pro on Llama 3 has its own template, and the vocabulary of Llama 3.
        (QWEN25, {"<|python_tag|>": 128010}, ToolFormat.HERMES, None),
        (MISTRAL_7B, {"[TOOL_CALLS]": 5}, ToolFormat.MISTRAL, None),
        (SMALL_32, {"[TOOL_CALLS]": 9}, ToolFormat.MISTRAL_NAMED, None),
        (MAGISTRAL, {"[TOOL_CALLS]": 9}, ToolFormat.MISTRAL_NAMED, BRACKETED_THINK),
        (CHATML, {"<|im_end|>": 2}, ToolFormat.HERMES, None),
        (CHATML, {"<think>": 151667, "<|python_tag|>": 1}, ToolFormat.HERMES, None),
        (None, {}, ToolFormat.HERMES, None),
    ],
)
def test_family(
    template: str | None,
    vocabulary: dict[str, int],
    tool_format: ToolFormat,
    think_tags: ThinkTags | None,
) -> None:
    family = model_family(template, vocabulary)
    assert (family.tool_format, family.think_tags) == (tool_format, think_tags)
    assert family.thinks == (think_tags is not None)


def read(form: AnswerFormat, text: str) -> list[Piece]:
    parser = form.parser()
    return [*parser.push(text), *parser.finish()]


HERMES_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
CALLS = {
    ToolFormat.HERMES: HERMES_CALL,
    ToolFormat.LLAMA3: '<|python_tag|>{"name": "f", "parameters": {"a": 1}}',
    ToolFormat.MISTRAL: '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]',
    ToolFormat.MISTRAL_NAMED: '[TOOL_CALLS]f[ARGS]{"a": 1}',
}


@pytest.mark.parametrize("tool_format", list(ToolFormat))
def test_calls_are_read_where_tools_may_be_called(tool_format: ToolFormat) -> None:
    family, text = ModelFamily(tool_format), CALLS[tool_format]
    auto = ToolUse((F, G), (F,), ToolMode.AUTO)
    assert read(answer_format(family, auto, False), text) == [
        CallBegins(0, "f"),
        CallArguments(0, '{"a": 1}'),
    ]
    only_g = ToolUse((F, G), (G,), ToolMode.AUTO)
    none = ToolUse((F, G), (F, G), ToolMode.NONE)
    for tool_use in (only_g, none, None):
        pieces = read(answer_format(family, tool_use, False), text)
        assert "".join(piece.text for piece in pieces if isinstance(piece, Content)) == text


def test_one_call_when_calls_are_not_parallel() -> None:
    single = ToolUse((F,), (F,), ToolMode.AUTO, parallel=False)
    form = answer_format(ModelFamily(ToolFormat.HERMES), single, False)
    assert read(form, f"{HERMES_CALL}\n{HERMES_CALL}") == [
        CallBegins(0, "f"),
        CallArguments(0, '{"a": 1}'),
    ]


@pytest.mark.parametrize("starts_thinking", [True, False])
def test_reasoning_comes_before_calls(starts_thinking: bool) -> None:
    family = ModelFamily(ToolFormat.HERMES, THINK)
    form = answer_format(family, ToolUse((F,), (F,), ToolMode.AUTO), starts_thinking)
    text = f"Hm.\n</think>\n\n{HERMES_CALL}"
    assert read(form, text if starts_thinking else f"<think>\n{text}") == [
        Reasoning("Hm."),
        CallBegins(0, "f"),
        CallArguments(0, '{"a": 1}'),
    ]


def test_without_tools_or_reasoning_the_text_is_the_content() -> None:
    form = answer_format(ModelFamily(ToolFormat.HERMES), None, False)
    assert read(form, " <think>x</think>\n") == [Content(" <think>x</think>\n")]
    assert read(form, "") == []


@pytest.mark.parametrize(
    ("tool_format", "keeps"),
    [
        (ToolFormat.HERMES, False),
        (ToolFormat.LLAMA3, True),
        (ToolFormat.MISTRAL, True),
        (ToolFormat.MISTRAL_NAMED, True),
    ],
)
def test_special_tokens_are_kept_where_calls_are_marked_by_them(
    tool_format: ToolFormat, keeps: bool
) -> None:
    tool_use = ToolUse((F,), (F,), ToolMode.AUTO)
    family = ModelFamily(tool_format)
    assert answer_format(family, tool_use, False).keeps_special_tokens == keeps
    assert not answer_format(family, None, False).keeps_special_tokens


def test_special_tokens_are_kept_where_tags_are_tokens() -> None:
    family = ModelFamily(ToolFormat.HERMES, vocabulary={"<tool_call>": 128013})
    tool_use = ToolUse((F,), (F,), ToolMode.AUTO)
    assert answer_format(family, tool_use, False).keeps_special_tokens
    assert not answer_format(family, None, False).keeps_special_tokens


def test_special_tokens_are_kept_where_reasoning_is_marked_by_them() -> None:
    bracketed = ModelFamily(ToolFormat.MISTRAL_NAMED, BRACKETED_THINK)
    assert answer_format(bracketed, None, False).keeps_special_tokens
    assert not answer_format(
        ModelFamily(ToolFormat.HERMES, THINK), None, False
    ).keeps_special_tokens
