"""From finished sequences to the response body of the API."""

from __future__ import annotations

from typing import Any

from trunkline.engine.answers.chat import chat_completion
from trunkline.engine.answers.completion import text_completion
from trunkline.engine.answers.embedding import embedding_answer
from trunkline.engine.answers.failure import failure_of
from trunkline.engine.answers.json_text import json_text
from trunkline.engine.answers.responses import response
from trunkline.engine.answers.scoring import score_answer
from trunkline.engine.answers.text_stream import Detokenizer
from trunkline.engine.answers.usage import Usage
from trunkline.engine.faults import fault_of
from trunkline.engine.request import Refusal, Request
from trunkline.engine.requests.chat import ChatCompletionRequest
from trunkline.engine.requests.completion import CompletionRequest
from trunkline.engine.requests.embedding import EmbeddingRequest
from trunkline.engine.requests.errors import RequestError
from trunkline.engine.requests.scoring import RerankRequest, ScoreRequest
from trunkline.store.records import Outcome


def refused(refusal: Refusal) -> Outcome:
    """The outcome of a line that could not be run."""
    return Outcome(
        line=refusal.line.line,
        status_code=refusal.error.status_code,
        body=json_text(refusal.error.as_body()),
    )


def answered(request: Request, tokenizer: Detokenizer, created: int) -> Outcome:
    """The outcome of a request whose sequences have all finished.

    Args:
        created: unix seconds.
    """
    try:
        answer, usage = _answer(request, tokenizer, created)
        body = json_text(answer)
    except RequestError as error:
        return refused(Refusal(request.line, error))
    except Exception as error:  # see `faults`
        return refused(fault_of(request.line, "writing the answer", error))
    return Outcome(
        line=request.line.line,
        status_code=200,
        body=body,
        num_prompt_tokens=usage.num_prompt_tokens,
        num_cached_tokens=usage.num_cached_tokens,
        num_output_tokens=usage.num_output_tokens,
        num_reasoning_tokens=usage.num_reasoning_tokens,
    )


def _answer(request: Request, tokenizer: Detokenizer, created: int) -> tuple[dict[str, Any], Usage]:
    """The response body, and what it took.

    Raises:
        RequestError: what was generated or computed is no answer.
    """
    body = request.body
    if isinstance(body, EmbeddingRequest):
        return embedding_answer(request, body)
    if isinstance(body, ScoreRequest | RerankRequest):
        return score_answer(request, body, created)
    if error := failure_of(request, body):
        raise error
    if isinstance(body, ChatCompletionRequest):
        return chat_completion(request, body, tokenizer, created)
    if isinstance(body, CompletionRequest):
        return text_completion(request, body, tokenizer, created)
    return response(request, body, tokenizer, created)
