"""Chat completions, checked against the types of OpenAI's client."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageFunctionToolCall

from trunkline.engine.answers.format import AnswerFormat, ToolFormat
from trunkline.engine.answers.reasoning import THINK

CHAT = "/v1/chat/completions"
HERMES = AnswerFormat(ToolFormat.HERMES, frozenset(["add", "now"]))
THINKING = AnswerFormat(think_tags=THINK, starts_thinking=True)
END = "<|im_end|>"
MESSAGES = [{"role": "user", "content": "Hi"}]
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "now"}},
]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
OTHER_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def valid(body: dict[str, Any]) -> ChatCompletion:
    return ChatCompletion.model_validate_json(json.dumps(body), strict=True)


def test_a_message(write: Callable[..., Any]) -> None:
    body = write(CHAT, {"messages": MESSAGES}, f"Hello 🦊{END}").body()
    found = valid(body)
    assert (found.id, found.created, found.model) == ("chatcmpl-batch_1-7", 1_700_000_000, "m")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello 🦊", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 11,
        "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_an_answer_that_was_cut_off(write: Callable[..., Any]) -> None:
    (choice,) = valid(write(CHAT, {"messages": MESSAGES}, "Hel").body()).choices
    assert (choice.message.content, choice.finish_reason) == ("Hel", "length")


def test_an_empty_answer_has_empty_content(write: Callable[..., Any]) -> None:
    (choice,) = valid(write(CHAT, {"messages": MESSAGES}, END).body()).choices
    assert (choice.message.content, choice.finish_reason) == ("", "stop")


def test_choices_share_the_prompt(write: Callable[..., Any]) -> None:
    written = write(CHAT, {"messages": MESSAGES, "n": 3}, f"a{END}", f"bb{END}", "ccc")
    for sequence, cached in zip(written.request.sequences, (5, 6, 7), strict=True):
        sequence.num_cached_tokens = cached
    found = valid(written.body())
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert [choice.message.content for choice in found.choices] == ["a", "bb", "ccc"]
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (7, 8)
    assert found.usage.prompt_tokens_details is not None
    assert found.usage.prompt_tokens_details.cached_tokens == 5
    outcome = written.outcome()
    assert (outcome.num_prompt_tokens, outcome.num_output_tokens) == (7, 8)
    assert outcome.num_cached_tokens == 5


def test_log_probabilities_of_the_content(write: Callable[..., Any]) -> None:
    body = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    (choice,) = valid(write(CHAT, body, f"a🦊{END}", num_logprobs=2).body()).choices
    assert choice.logprobs is not None
    assert choice.logprobs.refusal is None
    content = choice.logprobs.content
    assert content is not None
    assert [token.token for token in content] == ["a", "\\xf0", "\\x9f", "\\xa6", "\\x8a"]
    joined = bytes(byte for token in content for byte in token.bytes or ())
    assert joined.decode() == choice.message.content
    assert [len(token.top_logprobs) for token in content] == [2] * 5
    assert content[0].top_logprobs[1].token == "b"
    assert content[0].logprob == content[0].top_logprobs[0].logprob == -0.125


def test_tokens_of_a_stop_string_are_no_content(write: Callable[..., Any]) -> None:
    body = {"messages": MESSAGES, "logprobs": True, "stop": "END"}
    written = write(CHAT, body, "a ENxEND", num_logprobs=0, stop_strings=("END",))
    (choice,) = valid(written.body()).choices
    assert choice.message.content == "a ENx"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    assert "".join(token.token for token in choice.logprobs.content or ()) == "a ENx"


def test_text_that_was_held_back_has_its_own_tokens(write: Callable[..., Any]) -> None:
    """What might have begun a call, a character or a stop string; not the end of the answer."""
    body = {"messages": MESSAGES, "logprobs": True, "tools": TOOLS, "n": 3}
    written = write(
        *(CHAT, body, f"a <{END}", b"a \xf0\x9f", "a <ENx <ENDD"),
        answer_format=HERMES,
        num_logprobs=0,
        stop_strings=("ENDD",),
    )
    choices = valid(written.body()).choices
    assert [choice.message.content for choice in choices] == ["a <", "a \ufffd", "a <ENx <"]
    tokens = [
        [token.token for token in choice.logprobs.content or ()]
        for choice in choices
        if choice.logprobs is not None
    ]
    assert tokens == [["a", " ", "<"], ["a", " ", "\\xf0", "\\x9f"], [*"a <ENx <"]]


def test_calls(write: Callable[..., Any]) -> None:
    text = f"Let me see. {CALL}\n{OTHER_CALL}{END}"
    body = {"messages": MESSAGES, "tools": TOOLS}
    written = write(CHAT, body, text, text, prompts=("<s>Prompt",), answer_format=HERMES)
    first, second = valid(written.body()).choices
    assert first.finish_reason == "tool_calls"
    assert first.message.content == "Let me see."
    calls = first.message.tool_calls
    assert calls is not None
    assert [call.type for call in calls] == ["function", "function"]
    functions = [call.function for call in calls if call.type == "function"]
    assert [(f.name, f.arguments) for f in functions] == [("add", '{"a": 1}'), ("now", "{}")]
    ids = [call.id for choice in (first, second) for call in choice.message.tool_calls or ()]
    assert len(set(ids)) == 4
    assert all(call.startswith("call_") for call in ids)
    assert written.body() == written.body()


def test_a_call_without_words_has_no_content(write: Callable[..., Any]) -> None:
    written = write(
        CHAT, {"messages": MESSAGES, "tools": TOOLS}, f"{CALL}{END}", answer_format=HERMES
    )
    (choice,) = valid(written.body()).choices
    assert choice.message.content is None
    assert len(choice.message.tool_calls or ()) == 1


NAMED = {"type": "function", "function": {"name": "add"}}
ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [NAMED]},
}


@pytest.mark.parametrize(
    ("tool_choice", "end", "finish_reason"),
    [
        ("auto", END, "tool_calls"),
        ("required", END, "tool_calls"),
        (ALLOWED, END, "tool_calls"),
        (NAMED, END, "stop"),
        ("auto", "", "length"),
        (NAMED, "", "length"),
    ],
)
def test_why_an_answer_with_calls_ended(
    write: Callable[..., Any], tool_choice: Any, end: str, finish_reason: str
) -> None:
    body = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": tool_choice}
    (choice,) = valid(write(CHAT, body, CALL + end, answer_format=HERMES).body()).choices
    assert choice.finish_reason == finish_reason
    assert len(choice.message.tool_calls or ()) == 1


def test_calls_read_from_special_tokens(write: Callable[..., Any]) -> None:
    mistral = AnswerFormat(ToolFormat.MISTRAL, frozenset(["add"]))
    text = f'[TOOL_CALLS][{{"name": "add", "arguments": {{"a": 2}}}}]{END}'
    body = {"messages": MESSAGES, "tools": TOOLS}
    (choice,) = valid(write(CHAT, body, text, answer_format=mistral).body()).choices
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert (call.function.name, call.function.arguments) == ("add", '{"a": 2}')


def reasoning_tokens(found: ChatCompletion) -> int | None:
    assert found.usage is not None
    assert found.usage.completion_tokens_details is not None
    return found.usage.completion_tokens_details.reasoning_tokens


@pytest.mark.parametrize("begin", ["", "<think>"])
def test_reasoning(write: Callable[..., Any], begin: str) -> None:
    thinking = replace(THINKING, starts_thinking=not begin)
    text = f"{begin}\nHm 🦊.\n</think>\n\nYes.{END}"
    written = write(CHAT, {"messages": MESSAGES}, text, answer_format=thinking)
    body = written.body()
    (choice,) = valid(body).choices
    assert choice.message.content == "Yes."
    assert body["choices"][0]["message"]["reasoning_content"] == "Hm 🦊."
    assert reasoning_tokens(valid(body)) == len(text[: text.index("\n\nYes")].encode())
    assert written.outcome().num_reasoning_tokens == reasoning_tokens(valid(body))


def test_a_thought_that_never_ends(write: Callable[..., Any]) -> None:
    body = write(CHAT, {"messages": MESSAGES}, "Hm, hm </thi", answer_format=THINKING).body()
    (choice,) = valid(body).choices
    assert (choice.message.content, choice.finish_reason) == ("", "length")
    assert body["choices"][0]["message"]["reasoning_content"] == "Hm, hm </thi"
    assert reasoning_tokens(valid(body)) == 12


def test_reasoning_that_nobody_wants_is_counted(write: Callable[..., Any]) -> None:
    request = {"messages": MESSAGES, "include_reasoning": False}
    body = write(CHAT, request, f"Hm</think>Yes{END}", answer_format=THINKING).body()
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Yes", "refusal": None}
    assert reasoning_tokens(valid(body)) == len("Hm</think>")


def test_log_probabilities_begin_behind_the_reasoning(write: Callable[..., Any]) -> None:
    request = {"messages": MESSAGES, "logprobs": True}
    written = write(
        CHAT, request, f"Hm</think>\n🦊Yes{END}", answer_format=THINKING, num_logprobs=0
    )
    (choice,) = valid(written.body()).choices
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    joined = bytes(byte for token in content for byte in token.bytes or ())
    assert joined.decode() == "\n🦊Yes"


def test_an_answer_without_its_form_is_an_error(write: Callable[..., Any]) -> None:
    schema = {"name": "s", "schema": {"type": "object"}}
    request = {
        "messages": MESSAGES,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }
    written = write(CHAT, request, "{")
    written.request.sequences[0].failure = "too many states"
    outcome = written.outcome()
    assert outcome.status_code == 400
    assert outcome.body is not None
    assert json.loads(outcome.body)["error"] == {
        "message": "The answer could not be generated in the form that "
        "'response_format.json_schema.schema' asks for: too many states.",
        "type": "invalid_request_error",
        "param": "response_format.json_schema.schema",
        "code": "constraint_failed",
    }
