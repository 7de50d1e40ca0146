"""Which grammar an answer is held to, and from where on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trunkline.engine.answers.format import ModelFamily, ToolFormat
from trunkline.engine.answers.reasoning import THINK, ThinkTags
from trunkline.engine.constraining import Rule, rule_of
from trunkline.engine.grammar import Grammars
from trunkline.engine.requests.chat import ChatCompletionRequest
from trunkline.engine.requests.errors import RequestError
from trunkline.engine.tokenizer import Tokenizer

BEGIN, END = 2, 3
BOTH = {THINK.begin: BEGIN, THINK.end: END}


@pytest.fixture(scope="module")
def grammars(byte_folder: Path) -> Grammars:
    tokenizer = Tokenizer(byte_folder)
    return Grammars(tokenizer, tokenizer.vocab_size)


def rule(
    grammars: Grammars,
    body: Mapping[str, Any],
    tags: ThinkTags | None = None,
    vocabulary: Mapping[str, int] = BOTH,
    **thinking: bool,
) -> Rule | None:
    given = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **body}
    request = ChatCompletionRequest.parse(given)
    return rule_of(request, ModelFamily(ToolFormat.HERMES, tags, vocabulary), grammars, **thinking)


JSON = {"response_format": {"type": "json_object"}}
TOOL = {"type": "function", "function": {"name": "f"}}


def test_no_rule(grammars: Grammars) -> None:
    assert rule(grammars, {}) is None
    assert rule(grammars, {"tools": [TOOL]}) is None
    assert rule(grammars, {"tools": [TOOL], "tool_choice": "none"}) is None


@pytest.mark.parametrize(
    ("tags", "vocabulary", "thinking", "expected"),
    [
        (None, {}, {"may_think": False}, (None, None)),
        (THINK, BOTH, {"may_think": False}, (None, None)),
        (THINK, BOTH, {"may_think": True}, (END, BEGIN)),
        (THINK, BOTH, {"may_think": True, "starts_thinking": True}, (END, None)),
        (THINK, {THINK.end: END}, {"may_think": True, "starts_thinking": True}, (END, None)),
        # Tags that are no tokens: an answer that cannot be told from reasoning has none.
        (THINK, {THINK.end: END}, {"may_think": True}, (None, None)),
        (THINK, {}, {"may_think": True, "starts_thinking": True}, (None, None)),
    ],
)
def test_where_a_grammar_begins(
    grammars: Grammars,
    tags: ThinkTags | None,
    vocabulary: Mapping[str, int],
    thinking: Mapping[str, bool],
    expected: tuple[int | None, int | None],
) -> None:
    for body in (JSON, {"tools": [TOOL], "tool_choice": "required"}):
        found = rule(grammars, body, tags, vocabulary, **thinking)
        assert found is not None
        assert (found.after_token, found.unless_first_token) == expected


@pytest.mark.parametrize(
    ("body", "param"),
    [({**JSON, "min_tokens": 1}, "min_tokens"), ({"guided_regex": "("}, "guided_regex")],
)
def test_what_cannot_be_a_rule(grammars: Grammars, body: Mapping[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        rule(grammars, body)
    assert caught.value.param == param


def test_a_required_call_goes_before_the_form_of_an_answer(grammars: Grammars) -> None:
    required = {"tools": [TOOL], "tool_choice": "required"}
    assert rule(grammars, {**required, "guided_regex": "a"}) == rule(grammars, required)


def test_tools_that_are_nested_too_deeply(grammars: Grammars) -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(300):
        schema = {"type": "object", "properties": {"a": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    with pytest.raises(RequestError) as caught:
        rule(grammars, {"tools": [tool], "tool_choice": "required"})
    assert caught.value.param == "tools"
