"""Chat completions: messages with content, reasoning and function calls."""

from __future__ import annotations

from typing import Any

from trunkline.engine.answers.identity import answer_id, part_id
from trunkline.engine.answers.pieces import CallArguments, CallBegins, Content
from trunkline.engine.answers.reader import AnswerReader, Part
from trunkline.engine.answers.text_stream import Detokenizer
from trunkline.engine.answers.token_logprobs import token_logprobs
from trunkline.engine.answers.usage import Usage, usage_of
from trunkline.engine.request import Line, Request
from trunkline.engine.requests.chat import ChatCompletionRequest
from trunkline.engine.sequence import FinishReason, Sequence


def chat_completion(
    request: Request, body: ChatCompletionRequest, tokenizer: Detokenizer, created: int
) -> tuple[dict[str, Any], Usage]:
    """The `chat.completion` object of a finished request.

    Args:
        created: unix seconds.
    """
    choices = [ChatChoice(request, body, sequence, tokenizer) for sequence in request.sequences]
    shown = [choice.finished() for choice in choices]
    usage = chat_usage(request, choices)
    completion = {
        "id": answer_id("chatcmpl", request.line),
        "object": "chat.completion",
        "created": created,
        "model": body.model,
        "choices": shown,
        "usage": usage.of_completion(),
        "system_fingerprint": None,
    }
    return completion, usage


class ChatChoice:
    """One choice of a chat completion, which `deltas` and `last_deltas` make as it grows."""

    def __init__(
        self,
        request: Request,
        body: ChatCompletionRequest,
        sequence: Sequence,
        tokenizer: Detokenizer,
    ) -> None:
        wants_logprobs = body.num_top_logprobs is not None
        self.index = sequence.choice
        self.logprobs: list[dict[str, Any]] | None = [] if wants_logprobs else None
        self._sequence = sequence
        self._tokenizer = tokenizer
        self._line: Line = request.line
        self._shows_reasoning = body.include_reasoning
        self._is_named_call = _names_function(request.line.body.get("tool_choice"))
        self._reader = AnswerReader(
            sequence, tokenizer, request.format, tells_tokens=wants_logprobs
        )
        self._content: str | None = None
        self._reasoning = ""
        self._calls: list[dict[str, Any]] = []

    def deltas(self) -> list[dict[str, Any]]:
        """What was added to the message since the last call, as a stream's chunks have it.

        `logprobs` grows by the tokens of the content and the calls.
        """
        return self._add(self._reader.read())

    def last_deltas(self) -> list[dict[str, Any]]:
        """What was left to add; the sequence has finished."""
        deltas = self._add(self._reader.finish())
        if self._content is None and not self._calls:
            self._content = ""
            deltas.append({"content": ""})
        return deltas

    def finished(self) -> dict[str, Any]:
        """The whole choice of a finished sequence."""
        self.last_deltas()
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self._content,
            "refusal": None,
        }
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        if self._calls:
            message["tool_calls"] = self._calls
        return {
            "index": self.index,
            "message": message,
            "logprobs": shown_logprobs(self.logprobs),
            "finish_reason": self.finish_reason,
        }

    @property
    def finish_reason(self) -> str:
        """Why the choice ended.

        Calls are no reason of their own when the request named the function, as with OpenAI.
        """
        assert self._sequence.finish_reason is not None, "only finished sequences have an outcome"
        is_stopped = self._sequence.finish_reason is FinishReason.STOP
        if is_stopped and self._calls and not self._is_named_call:
            return "tool_calls"
        return self._sequence.finish_reason.value

    @property
    def num_reasoning_tokens(self) -> int:
        return self._reader.num_reasoning_tokens

    def _add(self, parts: list[Part]) -> list[dict[str, Any]]:
        deltas = []
        for part in parts:
            if self.logprobs is not None:
                self.logprobs += token_logprobs(self._sequence, part.tokens, self._tokenizer)
            delta = self._delta(part)
            if delta:
                deltas.append(delta)
        return deltas

    def _delta(self, part: Part) -> dict[str, Any]:
        piece = part.piece
        if isinstance(piece, Content):
            self._content = (self._content or "") + piece.text
            return {"content": piece.text}
        if isinstance(piece, CallBegins):
            head = {
                "id": part_id("call", self._line, self.index, piece.index),
                "type": "function",
            }
            function = {"name": piece.name, "arguments": ""}
            self._calls.append({**head, "function": {**function}})
            return {"tool_calls": [{"index": piece.index, **head, "function": function}]}
        if isinstance(piece, CallArguments):
            function = self._calls[piece.index]["function"]
            function["arguments"] += piece.text
            return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}
        if not self._shows_reasoning:
            return {}
        self._reasoning += piece.text
        return {"reasoning_content": piece.text}


def _names_function(tool_choice: object) -> bool:
    return isinstance(tool_choice, dict) and tool_choice.get("type") == "function"


def shown_logprobs(tokens: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """The `logprobs` of a choice; None where none were asked for."""
    return None if tokens is None else {"content": tokens, "refusal": None}


def chat_usage(request: Request, choices: list[ChatChoice]) -> Usage:
    """What the request took, once all its choices have been read."""
    reasoning = sum(choice.num_reasoning_tokens for choice in choices)
    return usage_of(request.sequences, 1, reasoning)
