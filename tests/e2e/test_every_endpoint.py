"""Every endpoint as its clients use it: live and streamed, and the same requests in batches."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import openai
import pytest
import torch
from numpy.typing import NDArray
from openai.types.chat import ChatCompletionMessage
from pydantic import BaseModel, Field
from transformers import AutoModelForCausalLM, AutoTokenizer

from trunkline.engine.default_model import resolve_model

MODEL = "SmolLM2-135M-Instruct"
# In bfloat16 the last bits of a product depend on what else is in the batch.
EXACT = ("--dtype", "float32")
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
EMBEDDINGS, SCORE, RERANK = "/v1/embeddings", "/v1/score", "/v1/rerank"

City = Literal["Paris", "Tokyo", "Lima"]


class Facts(BaseModel):
    """Facts about a city."""

    continent: Literal["Africa", "America", "Asia", "Europe"]
    motto: str = Field(max_length=8)
    age: int = Field(ge=0, le=5000)


class Weather(BaseModel):
    """The weather in a city."""

    city: City
    unit: Literal["celsius", "fahrenheit"]


class Clock(BaseModel):
    """The time in a city."""

    city: City


ABOUT_PARIS = "Tell me about Paris."
TWO_QUESTIONS = "What is the weather in Paris, and what time is it in Tokyo?"
TOOLS = [openai.pydantic_function_tool(model) for model in (Weather, Clock)]
RESPONSES_TOOLS = [{"type": "function", **tool["function"]} for tool in TOOLS]
FACTS_SCHEMA = {"name": "Facts", "schema": Facts.model_json_schema()}
TEXTS = ["The cat sat on the mat.", "A dog barked.", "Interest rates went up again."]


def say(content: str) -> list[Any]:
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def site(shared_installation: Any) -> Any:
    """The installation that all of these tests use, with the default model."""
    shared_installation.start(*EXACT)
    return shared_installation


@pytest.fixture
def client(site: Any) -> Iterator[openai.OpenAI]:
    with site.client.with_options(max_retries=0, timeout=120) as made:
        yield made


def ask(site: Any, endpoint: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a live request."""
    reply = httpx.post(f"http://127.0.0.1:{site.port}{endpoint}", json=body, timeout=240)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


# Structured output


def test_chat_parses_into_a_model(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {
        "model": MODEL,
        "messages": say(ABOUT_PARIS),
        "response_format": Facts,
        "temperature": 0,
    }
    whole = client.chat.completions.parse(**wanted)
    with client.chat.completions.stream(**wanted, stream_options={"include_usage": True}) as stream:
        events = list(stream)
        streamed = stream.get_final_completion()
    assert isinstance(whole.choices[0].message.parsed, Facts)
    assert streamed.choices[0].message.parsed == whole.choices[0].message.parsed
    assert streamed.choices[0].message.content == whole.choices[0].message.content
    assert streamed.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert streamed.usage is not None
    assert whole.usage is not None
    assert streamed.usage.completion_tokens == whole.usage.completion_tokens
    deltas = [event.delta for event in events if event.type == "content.delta"]
    assert "".join(deltas) == whole.choices[0].message.content
    assert len(deltas) > whole.usage.completion_tokens / 2  # it came as it was written


def test_responses_parse_into_a_model(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {
        "model": MODEL,
        "input": ABOUT_PARIS,
        "text_format": Facts,
        "temperature": 0,
    }
    whole = client.responses.parse(**wanted)
    with client.responses.stream(**wanted) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    assert isinstance(whole.output_parsed, Facts)
    assert streamed.output_parsed == whole.output_parsed
    assert streamed.output_text == whole.output_text
    assert streamed.status == whole.status == "completed"
    assert streamed.usage is not None
    assert whole.usage is not None
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


# Tool calls


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


def test_chat_calls_tools(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {
        "model": MODEL,
        "messages": say(TWO_QUESTIONS),
        "tools": TOOLS,
        "tool_choice": "required",
        "temperature": 0,
        "max_tokens": 120,
    }
    whole = client.chat.completions.parse(**wanted).choices[0]
    calls = called(whole.message)
    assert [name for name, _ in calls] == ["Weather", "Clock"]
    assert isinstance(calls[0][1], Weather)
    assert isinstance(calls[1][1], Clock)
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
        max_tokens=4,
    ).choices[0]
    assert answer.message.content
    assert answer.message.tool_calls is None


def test_responses_call_tools(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {
        "model": MODEL,
        "input": TWO_QUESTIONS,
        "tools": TOOLS,
        "tool_choice": "required",
        "temperature": 0,
        "max_output_tokens": 120,
    }
    whole = client.responses.parse(**wanted)

    def calls_of(response: Any) -> list[tuple[str, Any]]:
        assert {item.type for item in response.output} == {"function_call"}
        return [(item.name, item.parsed_arguments) for item in response.output]

    calls = calls_of(whole)
    assert [name for name, _ in calls] == ["Weather", "Clock"]
    assert isinstance(calls[0][1], Weather)
    assert isinstance(calls[1][1], Clock)

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


@pytest.fixture(scope="module")
def families(site: Any, make_tiny_model: Callable[..., Path]) -> Iterator[None]:
    """Beside the default model, one of each family that writes calls in its own way."""
    processes = []
    try:
        for name, (call, markers) in FAMILIES.items():
            folder = make_tiny_model(TEMPLATE.format(call=call), markers)
            command = ("engine", "--model", folder, "--served-model-name", name)
            options = ("--engine-name", name, "--data-dir", site.folder / "data", *EXACT)
            small = ("--threads", "1", "--kv-cache-bytes", 16 * 1024 * 1024)
            with (site.folder / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "trunkline", *map(str, (*command, *options, *small))],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONSAFEPATH": "1"},
                )
            processes.append(process)

        def are_alive() -> bool:
            ready = httpx.get(f"http://127.0.0.1:{site.port}/readyz", timeout=10).json()
            return FAMILIES.keys() <= {engine["model"] for engine in ready["engines"]}

        site.wait_for(are_alive, 120)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize("family", list(FAMILIES))
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


# What the default model computes, by transformers


class Reference:
    """The default model, run by transformers."""

    def __init__(self) -> None:
        cache = Path(os.environ.get("TRUNKLINE_CACHE_DIR", "~/.cache/trunkline")).expanduser()
        folder = resolve_model(MODEL, cache)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def token_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def embedding(self, text: str, num_dimensions: int | None = None) -> NDArray[np.float32]:
        """[num_dimensions]: the last token's vector behind the last norm, made one long."""
        with torch.inference_mode():
            hidden = self.model.model(torch.tensor([self.token_ids(text)])).last_hidden_state
        vector: NDArray[np.float32] = hidden[0, -1, :num_dimensions].numpy()
        return vector / np.linalg.norm(vector)

    def prompt_logprobs(self, text: str) -> list[float]:
        """Of each token but the first."""
        ids = torch.tensor([self.token_ids(text)])
        with torch.inference_mode():
            logprobs = self.model(ids).logits[0, :-1].log_softmax(-1)
        found: list[float] = logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()
        return found


@pytest.fixture(scope="module")
def reference(site: Any) -> Reference:
    return Reference()  # the site has fetched the model


def test_completions(client: openai.OpenAI, reference: Reference) -> None:
    text = "One, two, three,"
    ids = reference.token_ids(text)
    greedy: dict[str, Any] = {"model": MODEL, "temperature": 0}
    echoed = client.completions.create(**greedy, prompt=text, echo=True, logprobs=2, max_tokens=4)
    choice = echoed.choices[0]
    assert choice.text.startswith(text)
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    offsets = choice.logprobs.text_offset
    assert offsets == [
        len("".join(choice.logprobs.tokens[:i])) for i in range(len(choice.logprobs.tokens))
    ]
    logprobs = choice.logprobs.token_logprobs
    assert logprobs is not None
    assert logprobs[0] is None
    assert logprobs[1 : len(ids)] == pytest.approx(reference.prompt_logprobs(text), abs=2e-3)
    assert choice.logprobs.top_logprobs is not None
    assert all(len(top) >= 2 for top in choice.logprobs.top_logprobs[1:])
    assert echoed.usage is not None
    assert (echoed.usage.prompt_tokens, echoed.usage.completion_tokens) == (len(ids), 4)

    only_prompt = client.completions.create(
        **greedy, prompt=ids, echo=True, logprobs=0, max_tokens=0
    ).choices[0]
    assert only_prompt.text == text
    assert only_prompt.logprobs is not None
    assert only_prompt.logprobs.token_logprobs is not None
    assert only_prompt.logprobs.token_logprobs[1:] == pytest.approx(
        logprobs[1 : len(ids)], abs=2e-3
    )

    # Token ids, several prompts, several choices of each.
    continued = choice.text.removeprefix(text)
    several = client.completions.create(
        **greedy, prompt=[ids, reference.token_ids("Hot and")], n=2, max_tokens=4
    )
    assert [each.index for each in several.choices] == [0, 1, 2, 3]
    texts = [each.text for each in several.choices]
    assert texts[:2] == [continued, continued]
    assert texts[2] == texts[3] != continued
    streamed = list(client.completions.create(**greedy, prompt=text, max_tokens=4, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == continued

    drawn: dict[str, Any] = {"model": MODEL, "prompt": text, "seed": 1, "max_tokens": 3}
    drawn |= {"logprobs": 0, "extra_body": {"ignore_eos": True}}
    best = client.completions.create(**drawn, best_of=4, n=2)
    assert [each.index for each in best.choices] == [0, 1]
    all_four = client.completions.create(**drawn, n=4)
    sums, all_sums = (
        [sum(each.logprobs.token_logprobs) for each in found.choices] for found in (best, all_four)
    )
    assert sums == pytest.approx(sorted(all_sums, reverse=True)[:2], abs=2e-3)
    assert best.usage is not None
    assert best.usage.completion_tokens == 4 * 3  # those that were not chosen, too


def test_embeddings(client: openai.OpenAI, reference: Reference) -> None:
    wanted = [reference.embedding(text) for text in TEXTS]
    # The client asks for base64 unless told, and decodes it.
    default = client.embeddings.create(model=MODEL, input=TEXTS)
    as_floats = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    by_ids = client.embeddings.create(model=MODEL, input=[*map(reference.token_ids, TEXTS)])
    for found in (default, as_floats, by_ids):
        assert [each.index for each in found.data] == [0, 1, 2]
        vectors = np.array([each.embedding for each in found.data])
        np.testing.assert_allclose(vectors, wanted, atol=2e-4)
    assert default.usage.prompt_tokens == sum(len(reference.token_ids(text)) for text in TEXTS)
    short = client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=64)
    np.testing.assert_allclose(
        short.data[0].embedding, reference.embedding(TEXTS[0], 64), atol=2e-4
    )
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=100_000)
    assert raised.value.param == "dimensions"


def test_score_and_rerank(site: Any, reference: Reference) -> None:
    first, *others = map(reference.embedding, TEXTS)
    wanted = [float(first @ other) for other in others]
    scored = ask(site, SCORE, {"model": MODEL, "text_1": TEXTS[0], "text_2": TEXTS[1:]})
    assert [each["score"] for each in scored["data"]] == pytest.approx(wanted, abs=1e-3)
    body = {"model": MODEL, "query": TEXTS[0], "documents": TEXTS[1:]}
    ranked = ask(site, RERANK, body)["results"]
    best = sorted(range(2), key=lambda i: -wanted[i])
    assert [each["index"] for each in ranked] == best
    assert [each["relevance_score"] for each in ranked] == pytest.approx(
        [wanted[i] for i in best], abs=1e-3
    )
    assert [each["document"]["text"] for each in ranked] == [TEXTS[1 + i] for i in best]
    assert len(ask(site, RERANK, {**body, "top_n": 1})["results"]) == 1


# The same in batches


def as_lines(endpoint: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "custom_id": f"request-{i}",
            "method": "POST",
            "url": endpoint,
            "body": {"model": MODEL, **body},
        }
        for i, body in enumerate(bodies)
    ]


GREEDY = {"temperature": 0, "max_tokens": 8}
BODIES: Mapping[str, list[dict[str, Any]]] = {
    CHAT: [
        {**GREEDY, "messages": say(ABOUT_PARIS), "n": 2, "logprobs": True, "top_logprobs": 2},
        {
            "temperature": 0,
            "messages": say(ABOUT_PARIS),
            "response_format": {"type": "json_schema", "json_schema": FACTS_SCHEMA},
        },
        {
            "temperature": 0,
            "max_tokens": 120,
            "messages": say(TWO_QUESTIONS),
            "tools": TOOLS,
            "tool_choice": "required",
        },
        {
            **GREEDY,
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "What is an owl?"}]},
                {"role": "assistant", "content": "An owl is", "prefix": True},
            ],
        },
    ],
    COMPLETIONS: [
        {**GREEDY, "prompt": "Two and two", "echo": True, "logprobs": 1},
        {**GREEDY, "prompt": [[504, 3575], [260] * 6], "n": 2},
        {**GREEDY, "prompt": "Red or blue? ", "structured_outputs": {"choice": ["red", "blue"]}},
    ],
    RESPONSES: [
        {"temperature": 0, "max_output_tokens": 8, "input": ABOUT_PARIS},
        {
            "temperature": 0,
            "input": ABOUT_PARIS,
            "text": {"format": {"type": "json_schema", **FACTS_SCHEMA}},
        },
        {
            "temperature": 0,
            "max_output_tokens": 120,
            "input": TWO_QUESTIONS,
            "tools": RESPONSES_TOOLS,
            "tool_choice": "required",
        },
    ],
    EMBEDDINGS: [
        {"input": TEXTS},
        {"input": TEXTS[0], "dimensions": 64},
        {"input": TEXTS, "encoding_format": "base64"},
    ],
    SCORE: [{"text_1": TEXTS[0], "text_2": TEXTS[1:]}, {"queries": TEXTS, "documents": TEXTS}],
    RERANK: [{"query": TEXTS[0], "documents": TEXTS}],
}
# They differ from one answer to the next.
NOT_COMPARED = {"id", "call_id", "created", "created_at", "completed_at", "cached_tokens"}


def decoded(embedding: str) -> list[float]:
    vector: list[float] = np.frombuffer(base64.b64decode(embedding), "<f4").tolist()
    return vector


def check_same(one: Any, other: Any, path: str = "answer") -> None:
    """Both are the same answer; numbers may differ in their last digits."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys(), path
        for key in one.keys() - NOT_COMPARED:
            check_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), path
        for i, (left, right) in enumerate(zip(one, other, strict=True)):
            check_same(left, right, f"{path}[{i}]")
    elif path.endswith(".embedding") and isinstance(one, str) and isinstance(other, str):
        check_same(decoded(one), decoded(other), path)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=2e-3), path
    else:
        assert one == other, path


def test_batches_answer_what_live_requests_answer(site: Any) -> None:
    lines = {endpoint: as_lines(endpoint, bodies) for endpoint, bodies in BODIES.items()}
    batches = {endpoint: site.submit(endpoint, each).id for endpoint, each in lines.items()}
    with ThreadPoolExecutor(8) as pool:
        asked = {
            (endpoint, line["custom_id"]): pool.submit(ask, site, endpoint, line["body"])
            for endpoint, each in lines.items()
            for line in each
        }
        live = {key: future.result() for key, future in asked.items()}
    for endpoint, batch_id in batches.items():
        batch = site.wait_for_end(batch_id)
        assert batch.status == "completed"
        assert site.results(batch.error_file_id) == []
        results = site.results(batch.output_file_id)
        assert [each["custom_id"] for each in results] == [
            line["custom_id"] for line in lines[endpoint]
        ]
        for result in results:
            body = result["response"]["body"]
            answer = live[endpoint, result["custom_id"]]
            check_same(body, answer, f"{endpoint} {result['custom_id']}")


def test_what_cannot_be_done_is_the_error_of_its_line(site: Any) -> None:
    hello = {"messages": say("Hello."), "max_tokens": 2}
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}
    described = {"name": "s", "schema": schema, "strict": True}
    picture = {"role": "user", "content": [{"type": "image_url"}]}
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        (
            "response_format.json_schema.schema",
            "invalid_value",
            {"response_format": {"type": "json_schema", "json_schema": described}},
        ),
        ("min_p", "unsupported_parameter", {"min_p": 0.1}),
        ("tempreature", "unsupported_parameter", {"tempreature": 0.1}),
        ("tools[0].type", "unsupported_parameter", {"tools": [{"type": "custom"}]}),
        ("messages[0].content[0].type", "unsupported_parameter", {"messages": [picture]}),
    ]
    lines = as_lines(CHAT, [hello, *({**hello, **fields} for _, _, fields in wrong)])
    batch = site.wait_for_end(site.submit(CHAT, lines).id)
    assert batch.request_counts.model_dump() == {"total": 6, "completed": 1, "failed": 5}
    assert [each["custom_id"] for each in site.results(batch.output_file_id)] == ["request-0"]
    failed = site.results(batch.error_file_id)
    assert [each["custom_id"] for each in failed] == [line["custom_id"] for line in lines[1:]]
    for line, result, (param, code, _) in zip(lines[1:], failed, wrong, strict=True):
        response = result["response"]
        error = response["body"]["error"]
        assert (response["status_code"], error["param"], error["code"]) == (400, param, code)
        # Asked live, it is the same error.
        url = f"http://127.0.0.1:{site.port}{CHAT}"
        reply = httpx.post(url, json=line["body"], timeout=60)
        assert (reply.status_code, reply.json()) == (400, response["body"])


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS, RESPONSES])
def test_a_file_with_a_line_that_streams_is_not_valid(site: Any, endpoint: str) -> None:
    body = BODIES[endpoint][0]
    batch = site.submit(endpoint, as_lines(endpoint, [body, {**body, "stream": True}]))
    batch = site.wait_for_end(batch.id)
    assert batch.status == "failed"
    (error,) = batch.errors.data
    assert (error.line, error.code, error.param) == (2, "streaming_unsupported", "body.stream")


# Live requests beside batches, and an engine that dies


def test_a_live_request_does_not_wait_for_a_batch(site: Any, client: openai.OpenAI) -> None:
    body = {"messages": say("Tell me a story."), "max_tokens": 64, "ignore_eos": True}
    batch = site.submit(CHAT, as_lines(CHAT, [body] * 100))
    site.wait_for(lambda: f"batch {batch.id}: running" in site.log, 60)
    answer = client.chat.completions.create(model=MODEL, messages=say("Hello."), max_tokens=4)
    assert answer.choices[0].message.content is not None
    meanwhile = client.batches.retrieve(batch.id)
    assert meanwhile.status == "in_progress"
    assert meanwhile.request_counts is not None
    assert meanwhile.request_counts.completed < 50
    client.batches.cancel(batch.id)
    assert site.wait_for_end(batch.id).status == "cancelled"


def test_an_engine_that_dies_ends_its_streams(site: Any, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=say("Tell me a story."),
        max_tokens=2000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    with stream:
        while not (chunk := next(stream)).choices[0].delta.content:
            pass
        assert chunk.choices[0].finish_reason is None
        site.kill_engine()
        killed_at = time.monotonic()
        with pytest.raises(openai.APIError, match="engine"):
            list(stream)
        assert time.monotonic() - killed_at < 60
    # The next one is answered when the engine is there again. Until then it is 503, and the client
    # asks again after 5 seconds, as it is told.
    patient = client.with_options(max_retries=40)
    answer = patient.chat.completions.create(model=MODEL, messages=say("Hello."), max_tokens=4)
    assert answer.choices[0].message.content is not None
