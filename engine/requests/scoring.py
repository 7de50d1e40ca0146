"""The bodies of `/v1/score` and `/v1/rerank`: vLLM's, and Jina's and Cohere's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from trunkline.engine.requests.body import Refused, RequestBody
from trunkline.engine.requests.checks import (
    as_filled_string,
    as_object,
    nothing_else,
    required,
)
from trunkline.engine.requests.embedding import REFUSED_IN_POOLING
from trunkline.engine.requests.errors import (
    RequestError,
    invalid_type,
    invalid_value,
    missing_parameter,
)

MAX_DOCUMENTS = 2048

# The two sides of a score, by either of their names.
_LEFT_NAMES = ("text_1", "queries")
_RIGHT_NAMES = ("text_2", "documents")


class ScoreRequest(RequestBody):
    """The body of a `/v1/score` request: how well texts fit together.

    One text is scored with each of the other side's, or as many with as many, pair by pair.
    """

    text_1: list[str]
    text_2: list[str]

    sources: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text_1": _LEFT_NAMES,
        "text_2": _RIGHT_NAMES,
    }
    refused: ClassVar[Mapping[str, Refused]] = {
        **REFUSED_IN_POOLING,
        "encoding_format": Refused(("float",)),
        "stream": Refused((False,), "Scores come whole."),
    }

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> dict[str, Any]:
        left_name, left = _side(body, _LEFT_NAMES)
        right_name, right = _side(body, _RIGHT_NAMES)
        if len(left) not in {1, len(right)}:
            raise RequestError(
                f"'{left_name}' has {len(left)} texts and '{right_name}' {len(right)}; there must "
                f"be one, or as many.",
                left_name,
                "invalid_value",
            )
        return {"text_1": left, "text_2": right}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The texts to score, in the order of the answer."""
        left = self.text_1 * len(self.text_2) if len(self.text_1) == 1 else self.text_1
        return list(zip(left, self.text_2, strict=True))


class RerankRequest(RequestBody):
    """The body of a `/v1/rerank` request: documents by how well they fit a query."""

    query: str = Field(min_length=1)
    documents: list[str]
    # The best ones to return; None: all of them.
    top_n: int | None = Field(None, ge=0)
    return_documents: bool = True

    refused: ClassVar[Mapping[str, Refused]] = {
        **REFUSED_IN_POOLING,
        "max_chunks_per_doc": Refused((), "Send documents that fit."),
        "max_tokens_per_doc": Refused((), "Send documents that fit."),
        "rank_fields": Refused((["text"],), "Send documents as strings."),
        "return_embeddings": Refused((False,), "Use '/v1/embeddings'."),
        "stream": Refused((False,), "Scores come whole."),
    }

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> dict[str, Any]:
        if "documents" not in body:
            return {}
        found = {"documents": _texts(body["documents"], "documents")}
        # vLLM's way of saying all of them.
        return found | ({"top_n": None} if body.get("top_n") == 0 else {})

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The query with each document, in the order of the documents."""
        return [(self.query, document) for document in self.documents]


def _side(body: Mapping[str, Any], names: tuple[str, str]) -> tuple[str, list[str]]:
    """One side's texts, and the name that they were given under."""
    given = [name for name in names if name in body]
    if not given:
        raise missing_parameter(names[0])
    if len(given) > 1:
        raise RequestError(
            f"'{names[0]}' and '{names[1]}' are the same; give one of them.",
            names[1],
            "invalid_value",
        )
    value = body[given[0]]
    return given[0], _texts([value] if isinstance(value, str) else value, given[0])


def _texts(value: object, path: str) -> list[str]:
    """Texts, each a string or an object with `text`."""
    if not isinstance(value, list):
        raise invalid_type(path, "an array", value)
    if not 1 <= len(value) <= MAX_DOCUMENTS:
        raise invalid_value(path, f"expected 1 to {MAX_DOCUMENTS} texts, got {len(value)}")
    return [_text(each, f"{path}[{i}]") for i, each in enumerate(value)]


def _text(value: object, path: str) -> str:
    if isinstance(value, str):
        return as_filled_string(value, path)
    given = as_object(value, path)
    nothing_else(given, path, ("text", "type"))
    return as_filled_string(required(given, "text", path), f"{path}.text")
