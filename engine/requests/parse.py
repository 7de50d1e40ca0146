"""From the body of a request to the type of its endpoint."""

from __future__ import annotations

from collections.abc import Mapping

from trunkline.engine.requests.chat import ChatCompletionRequest
from trunkline.engine.requests.completion import CompletionRequest
from trunkline.engine.requests.embedding import EmbeddingRequest
from trunkline.engine.requests.errors import RequestError
from trunkline.engine.requests.responses import ResponsesRequest
from trunkline.engine.requests.scoring import RerankRequest, ScoreRequest
from trunkline.store.endpoints import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    ENDPOINTS,
    RERANK,
    RESPONSES,
    SCORE,
)

GenerationRequest = ChatCompletionRequest | CompletionRequest | ResponsesRequest
PoolingRequest = EmbeddingRequest | ScoreRequest | RerankRequest
AnyRequest = GenerationRequest | PoolingRequest

REQUEST_TYPES: Mapping[
    str,
    type[ChatCompletionRequest]
    | type[CompletionRequest]
    | type[ResponsesRequest]
    | type[EmbeddingRequest]
    | type[ScoreRequest]
    | type[RerankRequest],
] = {
    CHAT_COMPLETIONS: ChatCompletionRequest,
    COMPLETIONS: CompletionRequest,
    RESPONSES: ResponsesRequest,
    EMBEDDINGS: EmbeddingRequest,
    SCORE: ScoreRequest,
    RERANK: RerankRequest,
}


def parse_request(endpoint: str, body: object) -> AnyRequest:
    """Parse the body of a request to `endpoint`.

    Raises:
        RequestError: there is no such endpoint, or a field is missing, of the wrong type, out of
            range or not supported.
    """
    kind = REQUEST_TYPES.get(endpoint)
    if kind is None:
        raise RequestError(
            f"The endpoint '{endpoint}' is not supported. Supported: {', '.join(ENDPOINTS)}.",
            "url",
        )
    if not isinstance(body, dict):
        raise RequestError("The request body must be a JSON object.")
    return kind.parse(body)
