"""The endpoints that answer requests, live and as lines of a batch."""

from __future__ import annotations

from collections.abc import Mapping

CHAT_COMPLETIONS = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
SCORE = "/v1/score"
RERANK = "/v1/rerank"

ENDPOINTS = (CHAT_COMPLETIONS, COMPLETIONS, RESPONSES, EMBEDDINGS, SCORE, RERANK)

# Those whose answers may come as a stream of server-sent events.
STREAMING_ENDPOINTS = frozenset({CHAT_COMPLETIONS, COMPLETIONS, RESPONSES})

# The field that a request needs beside its model; None: one of several.
REQUIRED_FIELDS: Mapping[str, str | None] = {
    CHAT_COMPLETIONS: "messages",
    COMPLETIONS: "prompt",
    RESPONSES: "input",
    EMBEDDINGS: "input",
    SCORE: None,
    RERANK: "documents",
}

# The fields that hold what the model reads.
PROMPT_FIELDS: Mapping[str, tuple[str, ...]] = {
    CHAT_COMPLETIONS: ("messages", "tools"),
    COMPLETIONS: ("prompt",),
    RESPONSES: ("instructions", "input", "tools"),
    EMBEDDINGS: ("input",),
    SCORE: ("text_1", "text_2", "queries", "documents"),
    RERANK: ("query", "documents"),
}
