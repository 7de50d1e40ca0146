"""A stream adds up to the answer that is given whole, in the hands of OpenAI's own client."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from trunkline.engine.answers.format import AnswerFormat, ToolFormat
from trunkline.engine.answers.reasoning import THINK

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
END = "<|im_end|>"
NAMES = frozenset(["add", "now"])
FORMAT = AnswerFormat(ToolFormat.HERMES, NAMES, think_tags=THINK, starts_thinking=False)
MISTRAL = AnswerFormat(ToolFormat.MISTRAL, NAMES)
MESSAGES = [{"role": "user", "content": "Hi"}]
CALLS = (
    '<tool_call>\n{"name": "add", "arguments": {"a": "🦊"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)
NESTED_TOOLS = [
    {"type": "function", "function": {"name": "add"}},
    {"type": "function", "function": {"name": "now"}},
]
FLAT_TOOLS: list[dict[str, Any]] = [
    {"type": "function", "name": "add", "parameters": None, "strict": None},
    {"type": "function", "name": "now", "parameters": None, "strict": None},
]

TEXTS = {
    "words": f"Hello 🦊, née.{END}",
    "cut off": "Hello <tool_ca",
    "nothing": END,
    "calls": f"{CALLS}{END}",
    "words and calls": f"Let me see.\n{CALLS}{END}",
    "a call cut off": CALLS[:45],
    "reasoning": f"<think>\nHm 🦊.\n</think>\n\nYes.{END}",
    "reasoning and calls": f"<think>Hm.</think>{CALLS}{END}",
    "reasoning cut off": "<think>\nHm, hm\n</th",
    "reasoning alone": f"<think>Hm</think>{END}",
}


@pytest.fixture(params=["one by one", "some at a time", "at once"])
def sizes(request: pytest.FixtureRequest) -> Iterator[int]:
    chance = random.Random(7)
    return {
        "one by one": itertools.repeat(1),
        "some at a time": iter(lambda: chance.randint(0, 5), None),
        "at once": itertools.repeat(1000),
    }[request.param]


def accumulated(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The chat completion that OpenAI's client makes of the chunks."""
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in chunks:
        text = json.dumps(chunk)
        state.handle_chunk(ChatCompletionChunk.model_validate_json(text, strict=True))
    found: dict[str, Any] = state.current_completion_snapshot.to_dict(mode="json")
    for choice in found["choices"]:
        for call in choice["message"].get("tool_calls") or ():
            call.pop("index", None)
    shown: dict[str, Any] = without_nulls(found)
    return shown


def whole_answer(body: dict[str, Any], *, with_usage: bool) -> dict[str, Any]:
    """The answer that is given whole, as `accumulated` has it."""
    found: dict[str, Any] = without_nulls(body)
    return found if with_usage else {k: v for k, v in found.items() if k != "usage"}


def without_nulls(value: Any) -> Any:
    """Without the fields that are null, which the client adds and leaves out as it likes."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_chat(write: Callable[..., Any], text: str, sizes: Iterator[int]) -> None:
    request = {"messages": MESSAGES, "tools": NESTED_TOOLS, "stream": True}
    written = write(CHAT, request, text, answer_format=FORMAT)
    chunks = written.chunks(sizes)
    assert all("usage" not in chunk for chunk in chunks)
    assert accumulated(chunks) == whole_answer(written.body(), with_usage=False)
    begin = chunks[0]["choices"][0]
    assert begin["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] is None for chunk in chunks] == [
        *([True] * (len(chunks) - 1)),
        False,
    ]


def test_choices_take_turns(write: Callable[..., Any], sizes: Iterator[int]) -> None:
    request = {
        "messages": MESSAGES,
        "tools": NESTED_TOOLS,
        "n": len(TEXTS),
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
    }
    written = write(CHAT, request, *TEXTS.values(), answer_format=FORMAT, num_logprobs=2)
    chunks = written.chunks(sizes)
    assert chunks[-1]["choices"] == []
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks[:-1])
    assert accumulated(chunks) == whole_answer(written.body(), with_usage=True)


def test_a_choice_begins_behind_those_before_it(write: Callable[..., Any]) -> None:
    request = {"messages": MESSAGES, "n": 3, "stream": True}
    written = write(CHAT, request, f"{'a' * 9}{END}", END, f"c{END}")
    chunks = written.chunks(itertools.cycle([0, 0, 5, 1, 1, 1]))
    begins = [c["choices"][0]["index"] for c in chunks if "role" in c["choices"][0]["delta"]]
    assert begins == [0, 1, 2]
    assert accumulated(chunks) == whole_answer(written.body(), with_usage=False)


def test_content_comes_with_its_log_probabilities(write: Callable[..., Any]) -> None:
    request = {"messages": MESSAGES, "stream": True, "logprobs": True}
    chunks = write(CHAT, request, f"a🦊{END}", num_logprobs=0).chunks(itertools.repeat(1))
    found = [
        (chunk["choices"][0]["delta"].get("content"), len(logprobs["content"]) if logprobs else 0)
        for chunk in chunks
        for logprobs in (chunk["choices"][0]["logprobs"],)
    ]
    assert found == [("", 0), ("a", 1), ("🦊", 4), (None, 0)]


def test_calls_read_from_special_tokens(write: Callable[..., Any], sizes: Iterator[int]) -> None:
    text = f'[TOOL_CALLS][{{"name": "add", "arguments": {{"a": 2}}}}]{END}'
    request = {"messages": MESSAGES, "tools": NESTED_TOOLS, "stream": True}
    written = write(CHAT, request, text, answer_format=MISTRAL)
    found = accumulated(written.chunks(sizes))
    assert found == whole_answer(written.body(), with_usage=False)
    assert found["choices"][0]["finish_reason"] == "tool_calls"


def completed(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices that the chunks of a text completion add up to."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] not in found:
                found[choice["index"]] = choice
                continue
            whole = found[choice["index"]]
            assert whole["finish_reason"] is None
            assert "prompt_logprobs" not in choice
            whole["text"] += choice["text"]
            whole["finish_reason"] = choice["finish_reason"]
            for name, column in (choice["logprobs"] or {}).items():
                whole["logprobs"][name] += column
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("logprobs", [None, 2])
@pytest.mark.parametrize("echo", [False, True])
def test_text_completions(
    write: Callable[..., Any], sizes: Iterator[int], logprobs: int | None, echo: bool
) -> None:
    request = {
        "prompt": ["Prompt", "Other"],
        "n": 2,
        "echo": echo,
        "logprobs": logprobs,
        "prompt_logprobs": 1,
        "stop": "née",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    texts = ("Hello 🦊, née.", f"b{END}", "n", END)
    written = write(
        *(COMPLETIONS, request, *texts),
        prompts=("<s>Prompt", "<s>Other"),
        num_logprobs=2,
        stop_strings=("née",),
    )
    chunks = written.chunks(sizes)
    body = written.body()
    assert completed(chunks) == body["choices"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == body["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    for chunk in chunks:
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"  # which the type lacks
            if choice["logprobs"] and choice["logprobs"]["token_logprobs"][:1] == [None]:
                choice["logprobs"] = None
        Completion.model_validate_json(json.dumps(chunk), strict=True)


EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def checked_response(written: Any, sizes: Iterator[int]) -> tuple[list[dict[str, Any]], Any]:
    """The events of a response, and what OpenAI's client has accumulated before the last one."""
    events = list(written.events(sizes))
    bodies = [json.loads(event.data) for event in events]
    assert [event.event for event in events] == [body["type"] for body in bodies]
    assert [body["sequence_number"] for body in bodies] == list(range(len(bodies)))
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=omit, text_format=omit)
    snapshot: Any = None
    for event in events:
        parsed = EVENT.validate_json(event.data, strict=True)
        snapshot = state.accumulate_event(parsed)
        state.__dict__["_ResponseStreamState__current_snapshot"] = snapshot
    return bodies, snapshot


@pytest.mark.parametrize("logprobs", [None, 1])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_responses(
    write: Callable[..., Any], text: str, sizes: Iterator[int], logprobs: int | None
) -> None:
    request = {"input": "Hi", "tools": FLAT_TOOLS, "stream": True, "top_logprobs": logprobs}
    written = write(RESPONSES, request, text, answer_format=FORMAT, num_logprobs=logprobs)
    whole = written.body()
    events, snapshot = checked_response(written, sizes)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    assert events[-1]["type"] == f"response.{whole['status']}"
    assert events[-1]["response"] == whole
    ended = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert ended == whole["output"]
    # What the client makes of the deltas; it does not add up reasoning and log-probabilities.
    assert [
        texts_of(item.to_dict(mode="json"))[:2]
        for item in snapshot.output
        if item.type != "reasoning"
    ] == [texts_of(item)[:2] for item in whole["output"] if item["type"] != "reasoning"]
    assert added_up(events) == [texts_of(item) for item in whole["output"]]


FRAGMENTS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<", "</", "END", "EN"),
    *('{"name": "add", "arguments": ', '{"a": ', "{}", "}", "}}", '"', "1", CALLS),
    *("🦊", "é", "a", " ", "\n", "[TOOL_CALLS]"),
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=10),
    is_ended=st.booleans(),
    counts=st.lists(st.integers(0, 6), max_size=8),
    logprobs=st.sampled_from([None, 1]),
    parallel=st.booleans(),
)
def test_anything_at_all(
    write: Callable[..., Any],
    fragments: list[str],
    is_ended: bool,
    counts: list[int],
    logprobs: int | None,
    parallel: bool,
) -> None:
    text = "".join(fragments).partition("END")[0] + ("END" if "END" in "".join(fragments) else "")
    text += END if is_ended and not text.endswith("END") else ""
    answer_format = replace(FORMAT, parallel=parallel)
    asked: dict[str, Any] = {"stream": True, "parallel_tool_calls": parallel}

    def written(endpoint: str, **body: Any) -> tuple[Any, Iterator[int]]:
        sizes = itertools.cycle([*counts, 1])
        sampled = {"num_logprobs": logprobs, "stop_strings": ("END",)}
        request = {**asked, **body}
        return write(endpoint, request, text, answer_format=answer_format, **sampled), sizes

    wanted = {} if logprobs is None else {"logprobs": True, "top_logprobs": logprobs}
    chat, sizes = written(CHAT, messages=MESSAGES, tools=NESTED_TOOLS, **wanted)
    assert accumulated(chat.chunks(sizes)) == whole_answer(chat.body(), with_usage=False)
    response, sizes = written(RESPONSES, input="Hi", tools=FLAT_TOOLS, top_logprobs=logprobs)
    events, _ = checked_response(response, sizes)
    assert events[-1]["response"] == response.body()
    assert added_up(events) == [texts_of(item) for item in response.body()["output"]]
    del asked["parallel_tool_calls"]
    completion, sizes = written(COMPLETIONS, prompt="Prompt", logprobs=logprobs)
    assert completed(completion.chunks(sizes)) == completion.body()["choices"]


def texts_of(item: dict[str, Any]) -> tuple[str, str, list[Any]]:
    if item["type"] == "function_call":
        return item["name"], item["arguments"], []
    (part,) = item["content"]
    return item["type"], part["text"], part.get("logprobs", [])


def added_up(events: list[dict[str, Any]]) -> list[tuple[str, str, list[Any]]]:
    """What the deltas of each item add up to, which its end repeats."""
    found: list[tuple[str, str, list[Any]]] = []
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(found)
            assert event["item"]["status"] == "in_progress"
            found.append((event["item"].get("name") or event["item"]["type"], "", []))
        elif kind.endswith(".delta"):
            assert event["delta"]
            assert event["output_index"] == len(found) - 1
            name, text, logprobs = found[-1]
            found[-1] = (name, text + event["delta"], logprobs + event.get("logprobs", []))
        elif kind.endswith(("_text.done", "arguments.done")):
            assert found[-1][1] == event.get("text", event.get("arguments"))
            assert found[-1][2] == event.get("logprobs", [])
    return found


def test_the_order_of_events(write: Callable[..., Any]) -> None:
    request = {"input": "Hi", "tools": FLAT_TOOLS, "stream": True}
    text = f'<think>Hm</think>Yes<tool_call>{{"name": "now", "arguments": {{}}}}</tool_call>{END}'
    written = write(RESPONSES, request, text, answer_format=FORMAT)
    events, _ = checked_response(written, itertools.repeat(1))
    kinds = [kind for kind, _ in itertools.groupby(event["type"] for event in events)]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_a_stream_that_cannot_have_its_form_ends_without_an_end(write: Callable[..., Any]) -> None:
    for endpoint, request in (
        (CHAT, {"messages": MESSAGES, "response_format": {"type": "json_object"}}),
        (COMPLETIONS, {"prompt": "P", "response_format": {"type": "json_object"}}),
    ):
        written = write(endpoint, {**request, "stream": True}, "{")
        written.request.sequences[0].failure = "too many states"
        last = written.chunks(itertools.repeat(1))[-1]
        assert last["choices"][0]["finish_reason"] is None
        error = json.loads(written.outcome().body)["error"]
        assert (error["param"], error["code"]) == ("response_format", "constraint_failed")
    form = {"format": {"type": "json_object"}}
    written = write(RESPONSES, {"input": "Hi", "text": form, "stream": True}, "{")
    written.request.sequences[0].failure = "too many states"
    events, _ = checked_response(written, itertools.repeat(1))
    assert events[-1]["type"] == "response.failed"
    assert "too many states" in events[-1]["response"]["error"]["message"]
