"""What the bodies of scores and rankings may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trunkline.engine.requests.parse import parse_request
from trunkline.engine.requests.scoring import RerankRequest, ScoreRequest
from trunkline.store.endpoints import RERANK, SCORE

Refuse = Callable[[str, Any], tuple[str, str | None, str | None]]


@pytest.mark.parametrize(
    ("fields", "pairs"),
    [
        ({"text_1": "a", "text_2": "b"}, [("a", "b")]),
        ({"text_1": "a", "text_2": ["b", "c"]}, [("a", "b"), ("a", "c")]),
        ({"text_1": ["a", "b"], "text_2": ["c", "d"]}, [("a", "c"), ("b", "d")]),
        ({"queries": "a", "documents": ["b", {"text": "c"}]}, [("a", "b"), ("a", "c")]),
        ({"queries": ["a"], "text_2": "b"}, [("a", "b")]),
    ],
)
def test_pairs_to_score(fields: dict[str, Any], pairs: list[tuple[str, str]]) -> None:
    request = parse_request(SCORE, {"model": "m", **fields})
    assert isinstance(request, ScoreRequest)
    assert request.pairs == pairs


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"text_2": "b"}, "text_1", "missing_required_parameter"),
        ({"text_1": "a"}, "text_2", "missing_required_parameter"),
        ({"text_1": "a", "queries": "a", "text_2": "b"}, "queries", "invalid_value"),
        ({"text_1": ["a", "b"], "text_2": ["c"]}, "text_1", "invalid_value"),
        ({"text_1": [], "text_2": ["c"]}, "text_1", "invalid_value"),
        ({"text_1": "", "text_2": ["c"]}, "text_1[0]", "invalid_value"),
        ({"text_1": "a", "documents": ["b", 5]}, "documents[1]", "invalid_type"),
        ({"text_1": "a", "text_2": [{"image": "x"}]}, "text_2[0].image", "unsupported_parameter"),
        ({"text_1": "a", "text_2": [{}]}, "text_2[0].text", "missing_required_parameter"),
    ],
)
def test_a_wrong_side_is_named(
    refusal: Refuse, fields: dict[str, Any], param: str, code: str
) -> None:
    assert refusal(SCORE, {"model": "m", **fields})[1:] == (param, code)


def rerank(**fields: Any) -> RerankRequest:
    body = {"model": "m", "query": "a", "documents": ["b", {"text": "c"}], **fields}
    request = parse_request(RERANK, body)
    assert isinstance(request, RerankRequest)
    return request


def test_ranking() -> None:
    assert rerank().pairs == [("a", "b"), ("a", "c")]
    assert rerank().top_n is None
    assert rerank(top_n=0).top_n is None
    assert rerank(top_n=1).top_n == 1
    assert rerank().return_documents
    assert not rerank(return_documents=False).return_documents


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"query": None}, "query", "missing_required_parameter"),
        ({"query": ""}, "query", "invalid_value"),
        ({"query": ["a"]}, "query", "invalid_type"),
        ({"documents": None}, "documents", "missing_required_parameter"),
        ({"documents": "b"}, "documents", "invalid_type"),
        ({"documents": []}, "documents", "invalid_value"),
        ({"top_n": -1}, "top_n", "invalid_value"),
        ({"rank_fields": ["title"]}, "rank_fields", "unsupported_parameter"),
    ],
)
def test_a_wrong_field_of_a_ranking_is_named(
    refusal: Refuse, fields: dict[str, Any], param: str, code: str
) -> None:
    body = {"model": "m", "query": "a", "documents": ["b"], **fields}
    assert refusal(RERANK, body)[1:] == (param, code)
