"""Text completions: their text, tokens and log-probabilities."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from openai.types import Completion

from trunkline.engine.sequence import FinishReason
from trunkline.engine.step_plan import TokenLogprobs

COMPLETIONS = "/v1/completions"
END = "<|im_end|>"


def valid(body: dict[str, Any]) -> Completion:
    """As OpenAI's type, which knows nothing of the nulls that its API puts before a prompt."""
    body = copy.deepcopy(body)
    for choice in body["choices"]:
        logprobs = choice["logprobs"]
        if logprobs is not None and logprobs["token_logprobs"][:1] == [None]:
            assert logprobs["top_logprobs"][0] is None
            logprobs["token_logprobs"][0] = 0.0
            logprobs["top_logprobs"][0] = {}
    return Completion.model_validate_json(json.dumps(body), strict=True)


def test_texts(write: Callable[..., Any]) -> None:
    request = {"prompt": ["Prompt", "Other"], "n": 2}
    texts = (f"a{END}", "bb", f"c{END}", f"d{END}")
    found = valid(write(COMPLETIONS, request, *texts, prompts=("<s>Prompt", "<s>Other")).body())
    assert found.id == "cmpl-batch_1-7"
    assert [(c.index, c.text, c.finish_reason) for c in found.choices] == [
        (0, "a", "stop"),
        (1, "bb", "length"),
        (2, "c", "stop"),
        (3, "d", "stop"),
    ]
    assert found.usage is not None
    assert found.usage.prompt_tokens == 7 + 6
    assert found.usage.completion_tokens == 8


def test_log_probabilities(write: Callable[..., Any]) -> None:
    request = {"prompt": "Prompt", "logprobs": 2}
    (choice,) = valid(write(COMPLETIONS, request, f"a🦊b{END}", num_logprobs=2).body()).choices
    logprobs = choice.logprobs
    assert choice.text == "a🦊b"
    assert logprobs is not None
    assert logprobs.tokens == [
        "a",
        *("bytes:\\xf0", "bytes:\\x9f", "bytes:\\xa6", "bytes:\\x8a"),
        "b",
        END,
    ]
    assert logprobs.text_offset == [0, 1, 1, 1, 1, 2, 3]
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[:2] == [-0.125, -0.375]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[1] == {"bytes:\\xf0": -0.375, "bytes:\\xf1": -1.375}


def test_the_token_itself_is_among_the_most_likely(write: Callable[..., Any]) -> None:
    written = write(COMPLETIONS, {"prompt": "P", "logprobs": 1}, "a", num_logprobs=1)
    written.request.sequences[0].logprobs = [TokenLogprobs(-3.0, (ord("b"),), (-1.0,))]
    (choice,) = valid(written.body()).choices
    assert choice.logprobs is not None
    assert choice.logprobs.top_logprobs == [{"b": -1.0, "a": -3.0}]


def test_impossible_tokens_are_numbers(write: Callable[..., Any]) -> None:
    written = write(COMPLETIONS, {"prompt": "P", "logprobs": 1}, "ab", num_logprobs=1)
    written.request.sequences[0].logprobs = [
        TokenLogprobs(-math.inf, (ord("b"),), (0.0,)),
        TokenLogprobs(math.nan, (ord("b"),), (math.nan,)),
    ]
    (choice,) = valid(written.body()).choices
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == [-9999.0, -9999.0]
    assert choice.logprobs.top_logprobs == [{"b": 0.0, "a": -9999.0}, {"b": -9999.0}]


def test_what_follows_a_stop_string_has_its_place(write: Callable[..., Any]) -> None:
    request = {"prompt": "P", "logprobs": 0, "stop": "ND"}
    written = write(COMPLETIONS, request, "aEND", num_logprobs=0, stop_strings=("ND",))
    (choice,) = valid(written.body()).choices
    assert choice.text == "aE"
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset == [0, 1, 2, 3]
    assert choice.logprobs.top_logprobs == [
        {"a": -0.125},
        {"E": -0.375},
        {"N": -0.625},
        {"D": -0.875},
    ]


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("Pé 🦊", "<s>Pé 🦊"),  # a token that the tokenizer put before it has no place in the text
        ("P<|im_end|>é", "P<|im_end|>é"),  # one that the prompt names has
    ],
)
def test_echo(write: Callable[..., Any], prompt: str, tokens: str) -> None:
    request = {"prompt": prompt, "echo": True, "logprobs": 1}
    body = write(COMPLETIONS, request, f"a🦊{END}", prompts=(tokens,), num_logprobs=1).body()
    (choice,) = valid(body).choices
    assert choice.text == f"{prompt}a🦊"
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["token_logprobs"][1] == -0.375
    assert logprobs["top_logprobs"][0] is None
    assert len({len(column) for column in logprobs.values()}) == 1
    is_whole = [not t.startswith("bytes:") and t not in ("<s>", END) for t in logprobs["tokens"]]
    for token, offset, whole in zip(
        logprobs["tokens"], logprobs["text_offset"], is_whole, strict=True
    ):
        assert not whole or choice.text.startswith(token, offset)
    assert logprobs["text_offset"][-1] == len(choice.text)


def test_echo_of_token_ids(write: Callable[..., Any]) -> None:
    request = {"prompt": list(b"Prompt"), "echo": True}
    (choice,) = valid(write(COMPLETIONS, request, " goes on", prompts=("Prompt",)).body()).choices
    assert (choice.text, choice.logprobs) == ("Prompt goes on", None)


def test_a_prompt_by_itself(write: Callable[..., Any]) -> None:
    request = {"prompt": "Prompt", "echo": True, "logprobs": 0, "max_tokens": 0}
    written = write(COMPLETIONS, request, "", num_logprobs=0)
    written.request.sequences[0].finish_reason = FinishReason.STOP  # by the one token thrown away
    body = written.body()
    (choice,) = valid(body).choices
    assert (choice.text, choice.finish_reason) == ("Prompt", "length")
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["<s>", *"Prompt"]
    assert logprobs["text_offset"] == [0, 0, 1, 2, 3, 4, 5]
    assert logprobs["top_logprobs"][1] == {"P": -0.375}
    assert body["usage"]["completion_tokens"] == 0


def test_log_probabilities_of_the_prompt_as_vllm_has_them(write: Callable[..., Any]) -> None:
    request = {"prompt": "P!", "prompt_logprobs": 1}
    written = write(COMPLETIONS, request, "a", prompts=("P!",), num_logprobs=2)
    record = written.request.sequences[0].record
    record.top_ids[1] = [ord("b"), ord("!")]
    record.top_logprobs[1] = [-0.25, -0.375]
    (choice,) = written.body()["choices"]
    assert choice["text"] == "a"
    assert choice["logprobs"] is None
    assert choice["prompt_logprobs"] == [
        None,
        {
            "33": {"logprob": -0.375, "rank": None, "decoded_token": "!"},
            "98": {"logprob": -0.25, "rank": 1, "decoded_token": "b"},
        },
    ]
    valid(written.body())


def test_the_most_likely_of_more(write: Callable[..., Any]) -> None:
    request = {"prompt": ["Prompt", "Other"], "n": 2, "best_of": 3, "echo": True}
    texts = ("a", f"bb{END}", "c", "d", "e", "f")
    written = write(COMPLETIONS, request, *texts, prompts=("<s>Prompt", "<s>Other"), num_logprobs=0)
    means = (-2.0, -1.0, -3.0, -1.0, -4.0, -2.0)
    for sequence, mean in zip(written.request.sequences, means, strict=True):
        sequence.logprobs = [TokenLogprobs(mean, (), ()) for _ in sequence.output]
    found = valid(written.body())
    assert [(c.index, c.text) for c in found.choices] == [
        (0, "Promptbb"),
        (1, "Prompta"),
        (2, "Otherd"),
        (3, "Otherf"),
    ]
    assert all(choice.logprobs is None for choice in found.choices)
    assert found.usage is not None
    assert found.usage.prompt_tokens == 7 + 6
    assert found.usage.completion_tokens == 8
