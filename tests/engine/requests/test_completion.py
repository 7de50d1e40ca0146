"""What the body of a text completion may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trunkline.engine.requests.completion import CompletionRequest
from trunkline.engine.requests.parse import parse_request
from trunkline.engine.requests.prompts import MAX_PROMPTS
from trunkline.store.endpoints import COMPLETIONS

Refuse = Callable[[str, Any], tuple[str, str | None, str | None]]


def parsed(**fields: Any) -> CompletionRequest:
    request = parse_request(COMPLETIONS, {"model": "m", "prompt": "x", **fields})
    assert isinstance(request, CompletionRequest)
    return request


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_every_form_of_a_prompt(prompt: Any, expected: Any) -> None:
    assert parsed(prompt=prompt).prompt == expected


@pytest.mark.parametrize("prompt", ["", [], [[]], 5, [1.5], ["a", 1], [[1, -1]], [True], [""]])
def test_a_prompt_of_no_form(refusal: Refuse, prompt: Any) -> None:
    message, param, _ = refusal(COMPLETIONS, {"model": "m", "prompt": prompt})
    assert message.startswith("'prompt' must be a string, an array of strings")
    assert param == "prompt"


@pytest.mark.parametrize("body", [{"model": "m"}, {"model": "m", "prompt": None}])
def test_no_prompt(refusal: Refuse, body: Any) -> None:
    assert refusal(COMPLETIONS, body)[0] == "Missing required parameter: 'prompt'."


def test_limits_on_output(refusal: Refuse) -> None:
    assert parsed().output_limit == 16
    assert parsed(max_tokens=5).output_limit == 5
    assert parsed(max_tokens=0, echo=True).output_limit == 0
    assert refusal(COMPLETIONS, {"model": "m", "prompt": "x", "max_tokens": 0})[1] == "max_tokens"
    assert refusal(COMPLETIONS, {"model": "m", "prompt": "x", "min_tokens": 17})[1] == "min_tokens"


@pytest.mark.parametrize(
    ("fields", "num_top", "num_prompt_top"),
    [
        ({}, None, None),
        ({"logprobs": 2}, 2, None),
        ({"logprobs": 0, "echo": True}, 0, 0),
        ({"echo": True}, None, None),
        ({"prompt_logprobs": 3}, None, 3),
        ({"prompt_logprobs": 3, "logprobs": 5, "echo": True}, 5, 5),
    ],
)
def test_logprobs(fields: dict[str, Any], num_top: int | None, num_prompt_top: int | None) -> None:
    request = parsed(**fields)
    assert request.num_top_logprobs == num_top
    assert request.num_prompt_top_logprobs == num_prompt_top


def test_best_of(refusal: Refuse) -> None:
    assert parsed(best_of=3, n=2).best_of == 3
    assert parsed(best_of=2, n=2, stream=True).best_of == 2
    for fields in ({"best_of": 2, "n": 3}, {"best_of": 0}, {"best_of": 2, "stream": True}):
        assert refusal(COMPLETIONS, {"model": "m", "prompt": "x", **fields})[1] == "best_of"


def test_too_many_prompts(refusal: Refuse) -> None:
    body = {"model": "m", "prompt": ["x"] * (MAX_PROMPTS + 1)}
    message, param, code = refusal(COMPLETIONS, body)
    assert (param, code) == ("prompt", "invalid_value")
    assert str(MAX_PROMPTS) in message
