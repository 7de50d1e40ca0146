"""Finished requests that generated nothing, and those that were refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from trunkline.engine.outcome import answered, refused
from trunkline.engine.pooling import PoolingConfig
from trunkline.engine.prompt_reading import Pooling, PromptReading, PromptRecord
from trunkline.engine.request import Line, Refusal
from trunkline.engine.requests.errors import RequestError


def pooled(
    write: Callable[..., Any], endpoint: str, body: dict[str, Any], *rows: list[float]
) -> Any:
    """A request to embed as many texts as there are rows, which are what was pooled of them."""
    written = write(endpoint, body, *[""] * len(rows), prompts=("Hi",) * len(rows))
    written.request.pooling = PoolingConfig(Pooling.MEAN, normalizes=True)
    for sequence, row in zip(written.request.sequences, rows, strict=True):
        sequence.record = PromptRecord.empty(PromptReading(pooling=Pooling.MEAN), 2)
        sequence.record.add_pooled(np.array(row, np.float32), 1)
    return written


def test_embeddings(write: Callable[..., Any]) -> None:
    written = pooled(write, "/v1/embeddings", {"input": ["Hi", "Ho"]}, [3.0, 4.0], [0.0, 2.0])
    body = written.body()
    assert body["object"] == "list"
    assert [item["embedding"] for item in body["data"]] == [[0.6, 0.8], [0.0, 1.0]]
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    outcome = written.outcome()
    assert (outcome.num_prompt_tokens, outcome.num_output_tokens) == (4, 0)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/score", {"text_1": "Hi", "text_2": "Ho"}),
        ("/v1/rerank", {"query": "Hi", "documents": ["Ho"]}),
    ],
)
def test_scores(write: Callable[..., Any], endpoint: str, body: dict[str, Any]) -> None:
    found = pooled(write, endpoint, body, [1.0, 0.0], [3.0, 4.0]).body()
    if "results" in found:
        assert found["results"][0]["relevance_score"] == pytest.approx(0.6)
    else:
        assert found["data"][0]["score"] == pytest.approx(0.6)


def test_a_vector_that_is_no_number_is_an_error(write: Callable[..., Any]) -> None:
    outcome = pooled(write, "/v1/embeddings", {"input": "Hi"}, [math.nan, 1.0]).outcome()
    assert outcome.status_code == 400
    assert json.loads(outcome.body)["error"]["code"] == "not_a_number"


def test_a_refusal() -> None:
    line = Line("batch_1", 3, "a", "/v1/completions", {})
    outcome = refused(Refusal(line, RequestError("No prompt.", "prompt", "missing")))
    assert (outcome.line, outcome.status_code) == (3, 400)
    assert outcome.body is not None
    assert json.loads(outcome.body)["error"]["param"] == "prompt"


def test_an_answer_that_cannot_be_written_is_an_error_of_the_engine(
    write: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        eos_token_ids = frozenset[int]()

        def decode(self, token_ids: Sequence[int], **_: Any) -> str:
            raise ZeroDivisionError(bytes(token_ids))

    request = write("/v1/completions", {"prompt": "P"}, "secret").request
    tokenizer: Any = Broken()
    outcome = answered(request, tokenizer, 0)
    assert outcome.status_code == 500
    error = json.loads(outcome.body or "")["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text
