"""Scores and rankings, in vLLM's, Jina's and Cohere's shapes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trunkline.engine.answers.scoring import (
    cosine_scores,
    pair_scores,
    ranking,
    score_list,
    texts_to_embed,
)
from trunkline.engine.answers.usage import Usage
from trunkline.engine.request import Line
from trunkline.engine.requests.scoring import RerankRequest, ScoreRequest

USAGE = Usage(num_prompt_tokens=9, num_cached_tokens=0, num_output_tokens=0)
LINE = Line("batch_1", 4, "id", "/v1/score", {})


def _score(left: object, right: object) -> ScoreRequest:
    return ScoreRequest.parse({"model": "m", "text_1": left, "text_2": right})


def _rerank(**fields: Any) -> RerankRequest:
    documents = ["d0", "d1", "d2", "d3"]
    return RerankRequest.parse({"model": "m", "query": "q", "documents": documents, **fields})


def _vectors(num: int) -> list[NDArray[np.float32]]:
    return list(np.random.default_rng(1).normal(size=(num, 6)).astype(np.float32))


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_one_text_with_each_of_the_others() -> None:
    body = _score("a", ["b", "c", "d"])
    assert texts_to_embed(body) == ["a", "b", "c", "d"]
    vectors = _vectors(4)
    expected = [_cosine(vectors[0], vector) for vector in vectors[1:]]
    assert cosine_scores(body, vectors) == pytest.approx(expected, abs=1e-6)


def test_pair_by_pair() -> None:
    body = _score(["a", "b"], ["c", "d"])
    assert texts_to_embed(body) == ["a", "b", "c", "d"]
    a, b, c, d = vectors = _vectors(4)
    assert cosine_scores(body, vectors) == pytest.approx([_cosine(a, c), _cosine(b, d)], abs=1e-6)


def test_a_cosine_is_never_more_than_one() -> None:
    vectors = [np.full(7, 0.1, np.float32)] * 2
    (score,) = cosine_scores(_score("a", "a"), vectors)
    assert score == pytest.approx(1)
    assert score <= 1


def test_scores_of_a_cross_encoder() -> None:
    assert pair_scores([np.array([0.25], np.float32), np.array([-3], np.float32)]) == [0.25, -3]


def test_score_list() -> None:
    body = score_list(_score("a", ["b", "c"]), LINE, [0.5, 0.25], USAGE, 123)
    assert json.loads(json.dumps(body)) == {
        "id": "score-batch_1-4",
        "object": "list",
        "created": 123,
        "model": "m",
        "data": [
            {"index": 0, "object": "score", "score": 0.5},
            {"index": 1, "object": "score", "score": 0.25},
        ],
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }


def test_ranking() -> None:
    body = ranking(_rerank(), LINE, [0.1, 0.9, 0.1, 0.5], USAGE)
    assert json.loads(json.dumps(body)) == {
        "id": "rerank-batch_1-4",
        "model": "m",
        "results": [
            {"index": 1, "relevance_score": 0.9, "document": {"text": "d1"}},
            {"index": 3, "relevance_score": 0.5, "document": {"text": "d3"}},
            {"index": 0, "relevance_score": 0.1, "document": {"text": "d0"}},
            {"index": 2, "relevance_score": 0.1, "document": {"text": "d2"}},
        ],
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }


def test_the_best_without_their_texts() -> None:
    request = _rerank(top_n=2, return_documents=False)
    results = ranking(request, LINE, [-4.0, 2.0, 0.0, 1.0], USAGE)["results"]
    assert results == [
        {"index": 1, "relevance_score": 2.0},
        {"index": 3, "relevance_score": 1.0},
    ]


@pytest.mark.parametrize("top_n", [0, 4, 100])
def test_more_than_there_are_or_all(top_n: int) -> None:
    results = ranking(_rerank(top_n=top_n), LINE, [0.0, 1.0, 2.0, 3.0], USAGE)["results"]
    assert [result["index"] for result in results] == [3, 2, 1, 0]


def test_cosines_of_a_ranking() -> None:
    request = _rerank()
    assert texts_to_embed(request) == ["q", "d0", "d1", "d2", "d3"]
    vectors = _vectors(5)
    expected = [_cosine(vectors[0], vector) for vector in vectors[1:]]
    assert cosine_scores(request, vectors) == pytest.approx(expected, abs=1e-6)
