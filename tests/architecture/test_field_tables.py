"""The tables of parameters in docs/api.md, OpenAI's own types and the parser agree."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params as completion_params
from openai.types import embedding_create_params as embedding_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params

from trunkline.engine.requests.errors import RequestError
from trunkline.engine.requests.parse import REQUEST_TYPES, parse_request
from trunkline.store.endpoints import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    ENDPOINTS,
    RERANK,
    RESPONSES,
    SCORE,
)

ROW = re.compile(r"^\| ((?:`\w+`(?:, )?)+) \| (\w+) \|", re.MULTILINE)
STATES = {"honoured", "accepted", "refused"}

HEADINGS = {
    CHAT_COMPLETIONS: "### Chat completions",
    COMPLETIONS: "### Completions",
    RESPONSES: "### Responses",
    EMBEDDINGS: "### Embeddings",
    SCORE: "### Score",
    RERANK: "### Rerank",
}
OPENAI_TYPES = {
    CHAT_COMPLETIONS: (
        chat_params.CompletionCreateParamsNonStreaming,
        chat_params.CompletionCreateParamsStreaming,
    ),
    COMPLETIONS: (
        completion_params.CompletionCreateParamsNonStreaming,
        completion_params.CompletionCreateParamsStreaming,
    ),
    RESPONSES: (
        response_params.ResponseCreateParamsNonStreaming,
        response_params.ResponseCreateParamsStreaming,
    ),
    EMBEDDINGS: (embedding_params.EmbeddingCreateParams,),
}


@dataclass(frozen=True)
class Sample:
    """A value of a field that asks for something, and what else the body needs for it."""

    value: Any
    beside: dict[str, Any] = field(default_factory=dict)


FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}
TOOLS = {"tools": [{"type": "function", "function": FUNCTION}]}
FLAT_TOOLS = {"tools": [{"type": "function", **FUNCTION}]}
USER = {"role": "user", "content": "Hi"}

BODIES: dict[str, dict[str, Any]] = {
    CHAT_COMPLETIONS: {"model": "m", "messages": [USER]},
    COMPLETIONS: {"model": "m", "prompt": "Hi"},
    RESPONSES: {"model": "m", "input": "Hi"},
    EMBEDDINGS: {"model": "m", "input": "Hi"},
    SCORE: {"model": "m", "text_1": "Hi", "text_2": ["Ho", "Hum"]},
    RERANK: {"model": "m", "query": "Hi", "documents": ["Ho", "Hum"]},
}

# Fields that mean the same wherever they are.
SAMPLES = {
    "model": Sample("other"),
    "frequency_penalty": Sample(0.5),
    "presence_penalty": Sample(0.5),
    "repetition_penalty": Sample(1.1),
    "temperature": Sample(0.5),
    "top_p": Sample(0.5),
    "top_k": Sample(5),
    "n": Sample(2),
    "seed": Sample(1),
    "stop": Sample(["a", "b", "c", "d", "e"]),
    "stop_token_ids": Sample([1]),
    "min_tokens": Sample(1),
    "ignore_eos": Sample(True),
    "logit_bias": Sample({"5": -100}),
    "max_tokens": Sample(5),
    "stream": Sample(True),
    "stream_options": Sample({"include_usage": True}, {"stream": True}),
    "response_format": Sample({"type": "json_object"}),
    "structured_outputs": Sample({"regex": "a+"}),
    "guided_json": Sample({"type": "object"}),
    "guided_regex": Sample("a+"),
    "guided_choice": Sample(["a", "b"]),
    "guided_grammar": Sample('start: "a"'),
    "chat_template_kwargs": Sample({"enable_thinking": False}),
    "metadata": Sample({"a": "b"}),
    "prompt_cache_key": Sample("k"),
    "prompt_cache_options": Sample({"mode": "explicit"}),
    "prompt_cache_retention": Sample("24h"),
    "safety_identifier": Sample("s"),
    "service_tier": Sample("flex"),
    "store": Sample(True),
    "user": Sample("u"),
    "priority": Sample(1),
    "request_id": Sample("r"),
    "cache_salt": Sample("s"),
    "guided_decoding_backend": Sample("guidance"),
    "moderation": Sample({"model": "omni-moderation-latest"}),
    "min_p": Sample(0.1),
    "typical_p": Sample(0.9),
    "use_beam_search": Sample(True),
    "length_penalty": Sample(0.5),
    "allowed_token_ids": Sample([1]),
    "bad_words": Sample(["a"]),
    "logits_processors": Sample(["p"]),
    "include_stop_str_in_output": Sample(True),
    "skip_special_tokens": Sample(False),
    "spaces_between_special_tokens": Sample(False),
    "return_token_ids": Sample(True),
    "return_tokens_as_token_ids": Sample(True),
    "truncate_prompt_tokens": Sample(5),
    "softmax": Sample(True),
    "activation": Sample(False),
    "use_activation": Sample(False),
}
OWN_SAMPLES: dict[str, dict[str, Sample]] = {
    CHAT_COMPLETIONS: {
        "messages": Sample([{"role": "developer", "content": "Be brief."}, USER]),
        "audio": Sample({"voice": "alloy", "format": "wav"}),
        "function_call": Sample({"name": "f"}),
        "functions": Sample([FUNCTION]),
        "logprobs": Sample(True),
        "max_completion_tokens": Sample(5),
        "modalities": Sample(["text", "audio"]),
        "parallel_tool_calls": Sample(False, TOOLS),
        "prediction": Sample({"type": "content", "content": "Ho"}),
        "reasoning_effort": Sample("low"),
        "tool_choice": Sample({"type": "function", "function": {"name": "f"}}, TOOLS),
        "tools": Sample(TOOLS["tools"]),
        "top_logprobs": Sample(3, {"logprobs": True}),
        "verbosity": Sample("low"),
        "web_search_options": Sample({}),
        "continue_final_message": Sample(
            True, {"messages": [USER, {"role": "assistant", "content": "H"}]}
        ),
        "add_generation_prompt": Sample(False),
        "include_reasoning": Sample(False),
        "prompt_logprobs": Sample(1),
        "echo": Sample(True),
        "add_special_tokens": Sample(True),
        "chat_template": Sample("{{ messages }}"),
        "documents": Sample([{"text": "a"}]),
    },
    COMPLETIONS: {
        "prompt": Sample([[1, 2], [3]]),
        "best_of": Sample(3),
        "echo": Sample(True),
        "logprobs": Sample(3),
        "prompt_logprobs": Sample(3),
        "suffix": Sample("end"),
        "add_special_tokens": Sample(False),
        "prompt_embeds": Sample("AAAA"),
    },
    RESPONSES: {
        "access_programs": Sample({"cyber": "standard"}),
        "background": Sample(True),
        "background_options": Sample({"completion_window": "2h"}),
        "context_management": Sample([{"type": "compaction"}]),
        "conversation": Sample("conv_1"),
        "image": Sample({"context_compression": "auto"}),
        "include": Sample(["message.output_text.logprobs"]),
        "input": Sample([{"role": "user", "content": "Ho"}]),
        "instructions": Sample("Be brief."),
        "max_output_tokens": Sample(5),
        "max_tool_calls": Sample(5),
        "parallel_tool_calls": Sample(False, FLAT_TOOLS),
        "previous_response_id": Sample("resp_1"),
        "prompt": Sample({"id": "pmpt_1"}),
        "reasoning": Sample({"effort": "low", "summary": "auto"}),
        "stream_options": Sample({"include_obfuscation": False}, {"stream": True}),
        "text": Sample({"format": {"type": "json_object"}}),
        "tool_choice": Sample({"type": "function", "name": "f"}, FLAT_TOOLS),
        "tools": Sample(FLAT_TOOLS["tools"]),
        "top_logprobs": Sample(3),
        "truncation": Sample("auto"),
    },
    EMBEDDINGS: {
        "input": Sample(["a", "b"]),
        "dimensions": Sample(3),
        "encoding_format": Sample("base64"),
        "normalize": Sample(False),
        "messages": Sample([USER]),
        "add_special_tokens": Sample(False),
        "embed_dtype": Sample("float16"),
    },
    SCORE: {
        "text_1": Sample("other"),
        "queries": Sample("other", {"text_1": None}),
        "text_2": Sample("other"),
        "documents": Sample("other", {"text_2": None}),
        "add_special_tokens": Sample(False),
        "encoding_format": Sample("base64"),
    },
    RERANK: {
        "query": Sample("other"),
        "documents": Sample(["other", {"text": "Ho"}]),
        "top_n": Sample(1),
        "return_documents": Sample(False),
        "max_chunks_per_doc": Sample(2),
        "max_tokens_per_doc": Sample(5),
        "rank_fields": Sample(["title"]),
        "return_embeddings": Sample(True),
        "add_special_tokens": Sample(False),
    },
}


def _tables(page: str, endpoint: str) -> list[dict[str, str]]:
    """Field -> state, of each table below the endpoint's heading."""
    _, _, rest = page.partition(f"\n{HEADINGS[endpoint]}\n")
    section = re.split(r"^##", rest, maxsplit=1, flags=re.MULTILINE)[0]
    tables = []
    for text in re.split(r"\n\n+", section.strip()):
        rows = ROW.findall(text)
        names = [name for names, _ in rows for name in re.findall(r"\w+", names)]
        assert len(names) == len(set(names)), "a field has two rows"
        tables.append({name: state for names, state in rows for name in re.findall(r"\w+", names)})
    return tables


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("endpoint", OPENAI_TYPES)
def test_first_table_has_every_field_that_openai_knows(page: str, endpoint: str) -> None:
    known = {name for kind in OPENAI_TYPES[endpoint] for name in kind.__annotations__}
    assert set(_tables(page, endpoint)[0]) == known


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_tables_have_every_field_that_the_parser_knows(page: str, endpoint: str) -> None:
    kind = REQUEST_TYPES[endpoint]
    tables = _tables(page, endpoint)
    listed: dict[str, str] = {}
    for table in tables:
        assert not listed.keys() & table.keys()
        listed |= table
    assert set(listed.values()) <= STATES
    known = dict.fromkeys(kind.honoured(), "honoured")
    known |= dict.fromkeys(kind.accepted, "accepted")
    known |= dict.fromkeys(kind.refused, "refused")
    assert listed == known


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_parser_does_what_the_tables_say(page: str, endpoint: str) -> None:
    for table in _tables(page, endpoint):
        for name, state in table.items():
            sample = OWN_SAMPLES[endpoint].get(name) or SAMPLES[name]
            without = {**BODIES[endpoint], **sample.beside}
            body = {**without, name: sample.value}
            if state == "refused":
                with pytest.raises(RequestError) as caught:
                    parse_request(endpoint, body)
                assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")
                continue
            parsed = parse_request(endpoint, body)
            if None not in without.values():
                changes = parsed != parse_request(endpoint, without)
                assert changes == (state == "honoured"), name
