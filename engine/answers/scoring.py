"""Scores of pairs of texts, and documents ranked by them.

The objects are vLLM's for `/v1/score`, and Jina's and Cohere's, which are nearly one, for
`/v1/rerank`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.answers.embedding import embedding_usage, normalised, pooled_vectors
from trunkline.engine.answers.identity import answer_id
from trunkline.engine.answers.usage import Usage, usage_of
from trunkline.engine.request import Line, Request
from trunkline.engine.requests.scoring import RerankRequest, ScoreRequest

Vector = NDArray[np.float32]


def score_answer(
    request: Request, body: ScoreRequest | RerankRequest, created: int
) -> tuple[dict[str, Any], Usage]:
    """The response to a finished request.

    Its texts were embedded, or read in pairs when no pooling is given.

    Args:
        created: unix seconds.

    Raises:
        RequestError: see `pooled_vectors`.
    """
    vectors = pooled_vectors(request)
    scores = pair_scores(vectors) if request.pooling is None else cosine_scores(body, vectors)
    usage = usage_of(request.sequences, len(request.sequences))
    if isinstance(body, RerankRequest):
        return ranking(body, request.line, scores, usage), usage
    return score_list(body, request.line, scores, usage, created), usage


def texts_to_embed(body: ScoreRequest | RerankRequest) -> list[str]:
    """The texts whose embeddings a model that is no cross-encoder compares."""
    left, right = _sides(body)
    return left + right


def cosine_scores(body: ScoreRequest | RerankRequest, vectors: Sequence[Vector]) -> list[float]:
    """The scores of the pairs of `body` by the angles between their embeddings, -1 to 1.

    Args:
        vectors: [num_dimensions] each, pooled, of `texts_to_embed(body)`.
    """
    num_left = len(_sides(body)[0])
    units = np.stack([normalised(vector) for vector in vectors])
    # One on the left is compared with each on the right.
    cosines = (units[:num_left] * units[num_left:]).sum(1, dtype=np.float64)
    return [float(score) for score in np.clip(cosines, -1.0, 1.0)]


def pair_scores(vectors: Sequence[Vector]) -> list[float]:
    """The scores of pairs that a cross-encoder has read.

    Args:
        vectors: [1] each.
    """
    return [float(vector[0]) for vector in vectors]


def score_list(
    body: ScoreRequest, line: Line, scores: Sequence[float], usage: Usage, created: int
) -> dict[str, Any]:
    """The response to `body`.

    Args:
        scores: of its pairs, in their order.
        created: unix seconds.
    """
    return {
        "id": answer_id("score", line),
        "object": "list",
        "created": created,
        "model": body.model,
        "data": [
            {"index": index, "object": "score", "score": score}
            for index, score in enumerate(scores)
        ],
        "usage": embedding_usage(usage),
    }


def ranking(
    body: RerankRequest, line: Line, scores: Sequence[float], usage: Usage
) -> dict[str, Any]:
    """The response to `body`: its documents, the best first.

    Args:
        scores: of its documents, in their order. Of equal ones the first comes first.
    """
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    results = []
    for index in best:
        result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
        if body.return_documents:
            result["document"] = {"text": body.documents[index]}
        results.append(result)
    return {
        "id": answer_id("rerank", line),
        "model": body.model,
        "results": results,
        "usage": embedding_usage(usage),
    }


def _sides(body: ScoreRequest | RerankRequest) -> tuple[list[str], list[str]]:
    if isinstance(body, RerankRequest):
        return [body.query], body.documents
    return body.text_1, body.text_2
