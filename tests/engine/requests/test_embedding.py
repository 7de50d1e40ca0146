"""What the body of an embedding may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trunkline.engine.requests.embedding import EmbeddingRequest
from trunkline.engine.requests.parse import parse_request
from trunkline.engine.requests.prompts import MAX_PROMPTS
from trunkline.store.endpoints import EMBEDDINGS

Refuse = Callable[[str, Any], tuple[str, str | None, str | None]]


def parsed(**fields: Any) -> EmbeddingRequest:
    request = parse_request(EMBEDDINGS, {"model": "m", "input": "x", **fields})
    assert isinstance(request, EmbeddingRequest)
    return request


@pytest.mark.parametrize(
    ("given", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]])],
)
def test_every_form_of_the_input(given: Any, prompts: Any) -> None:
    assert parsed(input=given).prompts == prompts


def test_fields() -> None:
    assert (parsed().dimensions, parsed().encoding_format) == (None, "float")
    request = parsed(dimensions=3, encoding_format="base64")
    assert (request.dimensions, request.encoding_format) == (3, "base64")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input", "invalid_value"),
        ({"input": ["a"] * (MAX_PROMPTS + 1)}, "input", "invalid_value"),
        ({"dimensions": 0}, "dimensions", "invalid_value"),
        ({"dimensions": "3"}, "dimensions", "invalid_type"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"stream": True}, "stream", "unsupported_parameter"),
        ({"temperature": 1}, "temperature", "unsupported_parameter"),
    ],
)
def test_a_wrong_field_is_named(
    refusal: Refuse, fields: dict[str, Any], param: str, code: str
) -> None:
    assert refusal(EMBEDDINGS, {"model": "m", "input": "x", **fields})[1:] == (param, code)
