"""Conversations as text, for models with templates of different abilities."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel

from trunkline.engine.answers.format import model_family
from trunkline.engine.chat_prompt import ChatPrompt, chat_prompt
from trunkline.engine.requests.chat import ChatCompletionRequest
from trunkline.engine.requests.errors import RequestError
from trunkline.engine.requests.parse import parse_request
from trunkline.engine.requests.responses import ResponsesRequest
from trunkline.engine.template_names import template_names
from trunkline.engine.tokenizer import Tokenizer
from trunkline.store.endpoints import CHAT_COMPLETIONS, RESPONSES

PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# In the manner of Qwen's.
SHOWS_TOOLS = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}</tool_call>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
KNOWS_DEVELOPER = (
    "{% for m in messages %}{% if m.role == 'developer' %}<|dev|>{% else %}<|{{ m.role }}|>"
    "{% endif %}{{ m.content }}{% endfor %}"
)
# Qwen3's switch
SWITCHES_THINKING = PLAIN + (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
KNOWS_EFFORT = "{{ reasoning_effort }}: " + PLAIN
ALWAYS_THINKS = PLAIN + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
# In the manner of DeepSeek's: arguments are JSON text.
JOINS_ARGUMENTS = SHOWS_TOOLS.replace(
    "{{ c.function.arguments | tojson }}", "{{ '=' + c.function.arguments }}"
)
PRINTS_ARGUMENTS = SHOWS_TOOLS.replace(
    "{{ c.function.arguments | tojson }}", "={{ c.function.arguments }}"
)
PRINTS_FUNCTIONS = (
    "{% if tools %}{% endif %}{% for m in messages %}{% for c in m.tool_calls %}"
    "[TOOL_CALLS]{{ c.function | tojson }}{% endfor %}{% endfor %}"
)
# In the manner of Mistral's: ids of calls have nine characters.
SHORT_IDS = (
    "{% if tools %}{{ tools[0].function.name }}{% endif %}"
    "{% for m in messages %}{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('length 9') }}{% endif %}"
    "[TOOL_CALLS]{{ c.id }}{% endfor %}"
    "{% if m.role == 'tool' %}[TOOL_RESULTS]{{ m.tool_call_id }}{% endif %}{% endfor %}"
)

USER = {"role": "user", "content": "Hi"}
FUNCTION = {"name": "f", "description": "Does f.", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
CALLED = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "5"},
]

Prompt = Callable[..., ChatPrompt]


def prompt_of(
    tokenizer: Tokenizer, request: ChatCompletionRequest | ResponsesRequest
) -> ChatPrompt:
    family = model_family(tokenizer.chat_template, tokenizer.vocabulary)
    return chat_prompt(tokenizer, family, request)


@pytest.fixture
def prompt(tmp_path: Path) -> Prompt:
    """The prompt of a request to a model with a certain template."""

    def make(template: str | None, messages: list[dict[str, Any]], **fields: Any) -> ChatPrompt:
        backend = Backend(WordLevel({"<unk>": 0, "Hi": 1}, unk_token="<unk>"))
        backend.save(str(tmp_path / "tokenizer.json"))
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {} if template is None else {"chat_template": template}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        body = {"model": "m", "messages": messages, **fields}
        request = parse_request(CHAT_COMPLETIONS, body)
        assert isinstance(request, ChatCompletionRequest)
        return prompt_of(Tokenizer(tmp_path), request)

    return make


def refused(prompt: Prompt, *args: Any, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        prompt(*args, **fields)
    return caught.value


def test_names_of_a_template() -> None:
    names = template_names("{# tools #}a {{ m.tools }}{% if x == 'developer' %}{{ b }}{% endif %}")
    assert {"m", "x", "b"} <= names.variables
    assert not {"tools", "a", "developer"} & names.variables
    assert names.strings == {"developer"}
    assert template_names("{{ 'unclosed }}").variables == frozenset()


def test_content_becomes_text(prompt: Prompt) -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": parts}]
    answer = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    refusal = {"role": "assistant", "content": None, "refusal": "Never."}
    text = prompt(PLAIN, [*messages, answer, refusal]).text
    assert text == "<|system|>S<|user|>Hi\nthere<|assistant|>No.<|assistant|>Never.<|assistant|>"


def test_developers_are_the_system_unless_the_template_knows_them(prompt: Prompt) -> None:
    messages = [{"role": "developer", "content": "D"}, USER]
    assert prompt(PLAIN, messages).text == "<|system|>D<|user|>Hi<|assistant|>"
    assert prompt(KNOWS_DEVELOPER, messages).text == "<|dev|>D<|user|>Hi"


def test_a_template_that_shows_tools(prompt: Prompt) -> None:
    shown = json.dumps(TOOLS[0])
    assert prompt(SHOWS_TOOLS, [USER], tools=TOOLS).text == (
        f"<tools>{shown}</tools><|user|>Hi<|assistant|>"
    )
    text = prompt(SHOWS_TOOLS, CALLED, tools=TOOLS, tool_choice="none").text
    assert text == (
        '<|user|>Hi<|assistant|><tool_call>f {"a": "é"}</tool_call><|tool|>5<|assistant|>'
    )


def test_tools_are_written_out_for_templates_that_show_none(prompt: Prompt) -> None:
    second = {**CALLED[2], "content": "6"}
    text = prompt(PLAIN, [*CALLED, second], tools=TOOLS).text
    system, _, rest = text.partition("<|user|>")
    assert system.startswith("<|system|># Tools\n")
    assert f"<tools>\n{json.dumps(TOOLS[0])}\n</tools>" in system
    assert '{"name": <function-name>, "arguments": <args-json-object>}' in system
    assert rest == (
        'Hi<|assistant|><tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>'
        "<|user|><tool_response>\n5\n</tool_response>\n<tool_response>\n6\n</tool_response>"
        "<|assistant|>"
    )
    given = [{"role": "system", "content": "Be brief."}, USER]
    assert prompt(PLAIN, given, tools=TOOLS).text.startswith("<|system|>Be brief.\n\n# Tools\n")
    assert "# Tools" not in prompt(PLAIN, given, tools=TOOLS, tool_choice="none").text


@pytest.mark.parametrize("template", [JOINS_ARGUMENTS, PRINTS_ARGUMENTS])
def test_arguments_are_text_where_the_template_takes_text(prompt: Prompt, template: str) -> None:
    assert '<tool_call>f ={"a": "é"}</tool_call>' in prompt(template, CALLED).text


def test_of_a_call_templates_see_the_name_and_the_arguments(prompt: Prompt) -> None:
    # The official client sends what it has parsed along, and the name behind the arguments.
    function = {"arguments": '{"a": 1}', "parsed_arguments": {"a": 1}, "name": "f"}
    called = {**CALLED[1], "tool_calls": [{**CALL, "function": function}]}
    assert prompt(PRINTS_FUNCTIONS, [USER, called]).text == (
        '[TOOL_CALLS]{"name": "f", "arguments": {"a": 1}}'
    )


def test_call_ids_are_of_the_length_that_the_template_takes(prompt: Prompt) -> None:
    text = prompt(SHORT_IDS, CALLED, tools=TOOLS).text
    _, call_id, result_id = text.replace("[TOOL_RESULTS]", "[TOOL_CALLS]").split("[TOOL_CALLS]")
    assert call_id == result_id
    assert len(call_id) == 9
    kept = json.loads(json.dumps(CALLED).replace("call_1", "abcDEF123"))
    assert "[TOOL_CALLS]abcDEF123[TOOL_RESULTS]abcDEF123" in prompt(SHORT_IDS, kept).text


def test_a_prefilled_answer_is_gone_on_with(prompt: Prompt) -> None:
    begun = {"role": "assistant", "content": "Well, "}
    assert prompt(PLAIN, [USER, begun]).text.endswith("Well, <|assistant|>")
    for given in (
        prompt(PLAIN, [USER, {**begun, "prefix": True}]),
        prompt(PLAIN, [USER, begun], continue_final_message=True, add_generation_prompt=False),
    ):
        assert given.text == "<|user|>Hi<|assistant|>Well, "
    assert prompt(PLAIN, [USER], add_generation_prompt=False).text == "<|user|>Hi"


@pytest.mark.parametrize(
    ("template", "effort", "end", "starts_thinking", "may_think"),
    [
        (PLAIN, None, "<|assistant|>", False, False),
        (PLAIN, "none", "<|assistant|>", False, False),
        (SWITCHES_THINKING, None, "<|assistant|>", False, True),
        (SWITCHES_THINKING, "high", "<|assistant|>", False, True),
        (SWITCHES_THINKING, "none", "</think>\n\n", False, False),
        (ALWAYS_THINKS, None, "<think>\n", True, True),
        (ALWAYS_THINKS, "low", "<think>\n", True, True),
    ],
)
def test_reasoning(
    prompt: Prompt,
    template: str,
    effort: str | None,
    end: str,
    starts_thinking: bool,
    may_think: bool,
) -> None:
    given = prompt(template, [USER], reasoning_effort=effort)
    assert given.text.endswith(end)
    assert (given.starts_thinking, given.may_think) == (starts_thinking, may_think)


def test_an_effort_is_shown_where_the_template_shows_it(prompt: Prompt) -> None:
    assert prompt(KNOWS_EFFORT, [USER], reasoning_effort="low").text.startswith("low: ")


def test_own_variables_go_before_an_effort(prompt: Prompt) -> None:
    fields = {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}
    assert prompt(SWITCHES_THINKING, [USER], **fields).may_think


@pytest.mark.parametrize(("template", "effort"), [(PLAIN, "low"), (ALWAYS_THINKS, "none")])
def test_an_effort_that_a_model_cannot_make(prompt: Prompt, template: str, effort: str) -> None:
    error = refused(prompt, template, [USER], reasoning_effort=effort)
    assert (error.param, error.code) == ("reasoning_effort", "unsupported_parameter")


@pytest.mark.parametrize(
    ("begun", "starts_thinking"), [("<think>\nHm", True), ("<think>\nHm\n</think>\n\nWe", False)]
)
def test_reasoning_may_be_prefilled(prompt: Prompt, begun: str, starts_thinking: bool) -> None:
    answer = {"role": "assistant", "content": begun, "prefix": True}
    given = prompt(ALWAYS_THINKS, [USER, answer])
    assert given.text.endswith(begun)
    assert given.starts_thinking is given.may_think is starts_thinking


def test_what_a_template_refuses_is_the_requests_error(prompt: Prompt) -> None:
    error = refused(prompt, "{{ raise_exception('no system') }}", [USER])
    assert "no system" in error.message
    assert error.param == "messages"
    assert "no chat template" in refused(prompt, None, [USER]).message
    nested: Any = {}
    for depth in range(5000):
        nested = {"a": nested}
        if depth in {700, 4999}:
            assert refused(prompt, PLAIN, [{**USER, "extra": nested}]).param == "messages"


def test_a_response_is_refused_in_its_own_words(tmp_path: Path, prompt: Prompt) -> None:
    prompt(PLAIN, [USER])  # makes the tokenizer
    body = {"model": "m", "input": "Hi", "reasoning": {"effort": "low"}}
    request = parse_request(RESPONSES, body)
    assert isinstance(request, ResponsesRequest)
    with pytest.raises(RequestError) as caught:
        prompt_of(Tokenizer(tmp_path), request)
    assert caught.value.param == "reasoning.effort"
    assert caught.value.message.startswith("The parameter 'reasoning.effort' is not supported.")
    request = parse_request(RESPONSES, {"model": "m", "input": "Hi", "instructions": "Be brief."})
    assert isinstance(request, ResponsesRequest)
    text = prompt_of(Tokenizer(tmp_path), request).text
    assert text == "<|system|>Be brief.<|user|>Hi<|assistant|>"
