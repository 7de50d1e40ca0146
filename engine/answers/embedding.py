"""Embeddings: pooled vectors, cut to the dimensions that were asked for, normalised, encoded."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.answers.usage import Usage, usage_of
from trunkline.engine.pooling import PoolingConfig
from trunkline.engine.request import Request
from trunkline.engine.requests.embedding import EmbeddingRequest
from trunkline.engine.requests.errors import RequestError, invalid_value

# A vector that is all zeros stays so.
MIN_NORM = 1e-12

Vector = NDArray[np.float32]


def check_dimensions(body: EmbeddingRequest, num_dimensions: int) -> None:
    """Raise RequestError when `body` asks for more dimensions than the model has."""
    if body.dimensions is not None and body.dimensions > num_dimensions:
        raise invalid_value(
            "dimensions",
            f"the model's embeddings have {num_dimensions} dimensions, got {body.dimensions}",
        )


def embedding_answer(request: Request, body: EmbeddingRequest) -> tuple[dict[str, Any], Usage]:
    """The response to a finished request, whose body has passed `check_dimensions`.

    Raises:
        RequestError: see `pooled_vectors`.
    """
    assert request.pooling is not None, "admitted by a model that embeds"
    usage = usage_of(request.sequences, len(request.sequences))
    return embedding_list(body, pooled_vectors(request), request.pooling, usage), usage


def pooled_vectors(request: Request) -> list[Vector]:
    """What was pooled of each sequence of a finished request.

    Raises:
        RequestError: the model's arithmetic overflowed.
    """
    vectors = []
    for index, sequence in enumerate(request.sequences):
        assert sequence.record is not None, "its sequences were read"
        vector = sequence.record.embedding
        if not np.isfinite(vector).all():
            raise RequestError(
                f"What the model computed for text {index} of the request is not a number; a "
                "number format with a larger range, such as bfloat16, may help.",
                code="not_a_number",
            )
        vectors.append(vector)
    return vectors


def embedding_list(
    body: EmbeddingRequest, vectors: Sequence[Vector], pooling: PoolingConfig, usage: Usage
) -> dict[str, Any]:
    """The response to `body`, which has passed `check_dimensions`.

    Args:
        vectors: [num_dimensions] each, pooled, in the order of the inputs.
    """
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _encoded(_finished(vector, body, pooling), body),
            }
            for index, vector in enumerate(vectors)
        ],
        "model": body.model,
        "usage": embedding_usage(usage),
    }


def embedding_usage(usage: Usage) -> dict[str, int]:
    """The `usage` of endpoints that generate nothing."""
    return {"prompt_tokens": usage.num_prompt_tokens, "total_tokens": usage.num_prompt_tokens}


def normalised(vector: Vector) -> Vector:
    """`vector` made one long; a vector of zeros as it is."""
    # In float64, where no square of a float32 overflows.
    wide = vector.astype(np.float64)
    return (wide / max(float(np.linalg.norm(wide)), MIN_NORM)).astype(np.float32)


def _finished(vector: Vector, body: EmbeddingRequest, pooling: PoolingConfig) -> Vector:
    kept = vector[: body.dimensions]
    normalizes = pooling.normalizes if body.normalize is None else body.normalize
    return normalised(kept) if normalizes else kept


def _encoded(vector: Vector, body: EmbeddingRequest) -> list[float] | str:
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    # The shortest decimals that are read as the same float32.
    return [float(str(number)) for number in vector]
