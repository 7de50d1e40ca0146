"""Calls of functions by the official client, in the formats of several families of models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessage

from tests.e2e.endpoints.asking import TOOLS, TWO_QUESTIONS, Clock, Weather, say
from tests.e2e.small_engine import MODEL
from tests.models import small_model
from trunkline.engine.tokenizer import Tokenizer

pytestmark = pytest.mark.e2e


def called(message: ChatCompletionMessage) -> list[tuple[str, Any]]:
    """The functions that a parsed message calls, with their arguments as models."""
    return [
        (call.function.name, call.function.parsed_arguments)  # type: ignore[union-attr]  # parsed
        for call in message.tool_calls or []
    ]


def results_of(message: ChatCompletionMessage) -> list[Any]:
    """The messages with which a client goes on from calls."""
    calls = message.tool_calls or []
    return [
        message,
        *({"role": "tool", "tool_call_id": call.id, "content": "21"} for call in calls),
    ]


def check_both_called(calls: list[tuple[str, Any]]) -> None:
    """Each function is called at least once, always with arguments of its own."""
    assert {name for name, _ in calls} == {"Weather", "Clock"}
    for name, arguments in calls:
        assert isinstance(arguments, {"Weather": Weather, "Clock": Clock}[name])


@pytest.fixture(scope="module")
def several_calls() -> dict[str, Any]:
    """Fields of a request that make any model call one function after the other.

    To end is far from likely at first, and so is soon whatever was often said before.
    """
    ends = Tokenizer(small_model()).eos_token_ids
    return {"frequency_penalty": 2, "logit_bias": {str(end): -20 for end in ends}}


def test_chat_calls_tools(client: openai.OpenAI, several_calls: dict[str, Any]) -> None:
    wanted: dict[str, Any] = {
        "model": MODEL,
        "messages": say(TWO_QUESTIONS),
        "tools": TOOLS,
        "tool_choice": "required",
        "temperature": 0,
        **several_calls,
    }
    whole = client.chat.completions.parse(**wanted).choices[0]
    calls = called(whole.message)
    check_both_called(calls)
    assert whole.message.content is None
    assert whole.finish_reason == "tool_calls"

    with client.chat.completions.stream(**wanted) as stream:
        events = list(stream)
        streamed = stream.get_final_completion().choices[0]
    assert called(streamed.message) == calls
    assert streamed.finish_reason == "tool_calls"
    done = [
        event.parsed_arguments
        for event in events
        if event.type == "tool_calls.function.arguments.done"
    ]
    assert done == [arguments for _, arguments in calls]

    named = client.chat.completions.parse(
        **{**wanted, "tool_choice": {"type": "function", "function": {"name": "Clock"}}},
        parallel_tool_calls=False,
    ).choices[0]
    ((name, arguments),) = called(named.message)
    assert name == "Clock"
    assert isinstance(arguments, Clock)
    assert named.finish_reason == "stop"  # as OpenAI has it for a named function

    answer = client.chat.completions.create(
        model=MODEL,
        messages=[*say(TWO_QUESTIONS), *results_of(whole.message)],
        tools=TOOLS,
        tool_choice="none",
        temperature=0,
        max_tokens=4,
    ).choices[0]
    assert answer.message.content
    assert answer.message.tool_calls is None


def test_responses_call_tools(client: openai.OpenAI, several_calls: dict[str, Any]) -> None:
    wanted: dict[str, Any] = {
        "model": MODEL,
        "input": TWO_QUESTIONS,
        "tools": TOOLS,
        "tool_choice": "required",
        "temperature": 0,
        "extra_body": several_calls,
    }
    whole = client.responses.parse(**wanted)

    def calls_of(response: Any) -> list[tuple[str, Any]]:
        assert {item.type for item in response.output} == {"function_call"}
        return [(item.name, item.parsed_arguments) for item in response.output]

    calls = calls_of(whole)
    check_both_called(calls)

    with client.responses.stream(**wanted) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    assert calls_of(streamed) == calls
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [json.loads(event.arguments) for event in done] == [
        arguments.model_dump() for _, arguments in calls
    ]

    results: list[Any] = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "21"}
        for item in whole.output
        if item.type == "function_call"
    ]
    goes_on: dict[str, Any] = {
        **wanted,
        "input": [*say(TWO_QUESTIONS), *whole.output, *results],
        "tool_choice": "none",
        "max_output_tokens": 4,
    }
    answer = client.responses.parse(**goes_on)
    assert answer.output_text
    assert [item.type for item in answer.output] == ["message"]


TEMPLATE = """\
{{% for message in messages %}}{{{{ message.role }}}}: {{{{ message.content }}}}\
{{% for call in message.tool_calls or [] %}}\
{{% set arguments = call.function.arguments | tojson %}}{call}{{% endfor %}}
{{% endfor %}}{{% for tool in tools or [] %}}{{{{ tool | tojson }}}}
{{% endfor %}}assistant: """

# How a template of each family writes a call, and its special tokens.
FAMILIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "hermes": (
        "<tool_call>\n{{ call.function | tojson }}\n</tool_call>",
        ("<tool_call>", "</tool_call>"),
    ),
    "llama3": (
        '<|python_tag|>{"name": "{{ call.function.name }}", "parameters": {{ arguments }}}',
        ("<|python_tag|>",),
    ),
    "mistral": ("[TOOL_CALLS] [{{ call.function | tojson }}]", ("[TOOL_CALLS]",)),
    "mistral-named": (
        "[TOOL_CALLS]{{ call.function.name }}[ARGS]{{ arguments }}",
        ("[TOOL_CALLS]", "[ARGS]"),
    ),
}


@pytest.fixture(
    params=[
        # As the small model has it, whose template knows no tools; here by special tokens.
        pytest.param("hermes", marks=pytest.mark.slow),
        "llama3",
        pytest.param("mistral", marks=pytest.mark.slow),
        "mistral-named",
    ]
)
def family(
    request: pytest.FixtureRequest, site: Any, make_tiny_model: Callable[..., Path]
) -> Iterator[str]:
    """A family that writes calls in its own way: a model of it is there beside the small one."""
    name = str(request.param)
    call, markers = FAMILIES[name]
    folder = make_tiny_model(TEMPLATE.format(call=call), markers)
    command = ("engine", "--model", folder, "--served-model-name", name)
    options = ("--engine-name", name, "--data-dir", site.folder / "data")
    size = ("--dtype", "float32", "--threads", "1", "--kv-cache-bytes", 16 * 1024 * 1024)
    with (site.folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "trunkline", *map(str, (*command, *options, *size))],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )

    def is_alive() -> bool:
        ready = httpx.get(f"http://127.0.0.1:{site.port}/readyz", timeout=10).json()
        return name in {engine["model"] for engine in ready["engines"]}

    try:
        site.wait_for(is_alive, 240)
        yield name
    finally:
        process.kill()
        process.wait()


def test_required_calls_in_the_format_of_the_family(client: openai.OpenAI, family: str) -> None:
    wanted: dict[str, Any] = {
        "model": family,
        "messages": say(TWO_QUESTIONS),
        "tools": TOOLS,
        "temperature": 0,
        "parallel_tool_calls": False,
    }
    required = client.chat.completions.parse(**wanted, tool_choice="required").choices[0]
    ((_, arguments),) = called(required.message)
    assert isinstance(arguments, Weather | Clock)
    assert required.message.content is None
    assert required.finish_reason == "tool_calls"
    with client.chat.completions.stream(**wanted, tool_choice="required") as stream:
        streamed = stream.get_final_completion().choices[0]
    assert called(streamed.message) == called(required.message)

    for tool, model in zip(TOOLS, (Weather, Clock), strict=True):
        name = tool["function"]["name"]
        choice: Any = {"type": "function", "function": {"name": name}}
        named = client.chat.completions.parse(**wanted, tool_choice=choice).choices[0]
        ((called_name, arguments),) = called(named.message)
        assert called_name == name
        assert isinstance(arguments, model)

    # One that may go on and on, and is cut off: what is whole is well formed.
    several = client.chat.completions.create(
        **{**wanted, "parallel_tool_calls": True}, tool_choice="required", max_tokens=250
    ).choices[0]
    assert several.message.tool_calls
    for call in several.message.tool_calls[:-1]:
        assert call.type == "function"
        schema = Weather if call.function.name == "Weather" else Clock
        schema.model_validate_json(call.function.arguments)
    assert several.message.content is None

    answer = client.chat.completions.create(
        model=family,
        messages=[*say(TWO_QUESTIONS), *results_of(required.message)],
        tools=TOOLS,
        tool_choice="none",
        max_tokens=4,
    ).choices[0]
    assert answer.message.tool_calls is None
    assert answer.finish_reason in {"stop", "length"}
