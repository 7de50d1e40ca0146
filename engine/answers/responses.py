"""Responses: one answer as a list of output items, whole or as the events that make it."""

from __future__ import annotations

from typing import Any

from trunkline.engine.answers.identity import part_id
from trunkline.engine.answers.output_items import Event, JsonObject, OutputItems
from trunkline.engine.answers.reader import AnswerReader, Part
from trunkline.engine.answers.text_stream import Detokenizer
from trunkline.engine.answers.token_logprobs import token_logprobs
from trunkline.engine.answers.usage import Usage, usage_of
from trunkline.engine.request import Line, Request
from trunkline.engine.requests.responses import ResponsesRequest
from trunkline.engine.sequence import FinishReason


def response(
    request: Request, body: ResponsesRequest, tokenizer: Detokenizer, created: int
) -> tuple[JsonObject, Usage]:
    """The `response` object of a finished request.

    Args:
        created: unix seconds.
    """
    writer = ResponseWriter(request, body, tokenizer, created)
    writer.finish(completed=created)
    return writer.response, writer.usage


class ResponseWriter:
    """A response as it grows.

    `begin`, `read` and `finish` return the events of a stream, in their order and numbered.
    `response` is the object as it stands.

    Args:
        created: unix seconds.
    """

    def __init__(
        self, request: Request, body: ResponsesRequest, tokenizer: Detokenizer, created: int
    ) -> None:
        (self._sequence,) = request.sequences
        self._request = request
        self._tokenizer = tokenizer
        self._shows_logprobs = body.num_top_logprobs is not None
        self._reader = AnswerReader(
            self._sequence, tokenizer, request.format, tells_tokens=self._shows_logprobs
        )
        self._output = OutputItems(request.line, self._logprobs_of)
        self._num_events = 0
        self.response = _begun(request.line, body, created)

    @property
    def usage(self) -> Usage:
        """What the request took, once it is finished."""
        return usage_of(self._request.sequences, 1, self._reader.num_reasoning_tokens)

    def begin(self) -> list[Event]:
        """The response is there and being worked on."""
        kinds = ("response.created", "response.in_progress")
        return self._numbered([{"type": kind, "response": {**self.response}} for kind in kinds])

    def read(self) -> list[Event]:
        """What the tokens since the last call have added."""
        return self._numbered(self._added(self._reader.read()))

    def finish(self, completed: int) -> list[Event]:
        """What was left to add, and the end; the sequence has finished.

        Args:
            completed: unix seconds.
        """
        events = self._added(self._reader.finish())
        is_complete = self._sequence.finish_reason is not FinishReason.LENGTH
        status = "completed" if is_complete else "incomplete"
        if not any(item["type"] != "reasoning" for item in self._output.items) and is_complete:
            events += self._output.open_message()
        events += self._output.close(status)
        self.response |= {
            "status": status,
            "completed_at": completed if is_complete else None,
            "incomplete_details": None if is_complete else {"reason": "max_output_tokens"},
            "output": self._output.items,
            "usage": self.usage.of_response(),
        }
        return self._numbered([*events, {"type": f"response.{status}", "response": self.response}])

    def fail(self, message: str) -> list[Event]:
        """The end of a response that is no answer; `message` says why."""
        events = [*self._added(self._reader.finish()), *self._output.close("incomplete")]
        self.response |= {
            "status": "failed",
            "error": {"code": "server_error", "message": message},
            "output": self._output.items,
            "usage": self.usage.of_response(),
        }
        return self._numbered([*events, {"type": "response.failed", "response": self.response}])

    def _added(self, parts: list[Part]) -> list[Event]:
        return [event for part in parts for event in self._output.add(part)]

    def _logprobs_of(self, part: Part) -> list[JsonObject]:
        if not self._shows_logprobs:
            return []
        return token_logprobs(self._sequence, part.tokens, self._tokenizer)

    def _numbered(self, events: list[Event]) -> list[Event]:
        start = self._num_events
        self._num_events += len(events)
        return [{**event, "sequence_number": start + i} for i, event in enumerate(events)]


def _begun(line: Line, body: ResponsesRequest, created: int) -> JsonObject:
    """A response without output: what was asked for, with the defaults of what was not."""
    given = _without_null(line.body)
    return {
        "id": part_id("resp", line),
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": given.get("instructions"),
        "max_output_tokens": given.get("max_output_tokens"),
        "max_tool_calls": given.get("max_tool_calls"),
        "metadata": given.get("metadata", {}),
        "model": body.model,
        "output": [],
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "prompt_cache_key": given.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None, **_without_null(given.get("reasoning", {}))},
        "safety_identifier": given.get("safety_identifier"),
        "service_tier": "default",
        "store": False,
        "temperature": given.get("temperature", 1.0),
        "text": {"format": {"type": "text"}, **_without_null(given.get("text", {}))},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": [_tool(tool) for tool in given.get("tools", ())],
        "top_logprobs": given.get("top_logprobs", 0),
        "top_p": given.get("top_p", 1.0),
        "truncation": given.get("truncation", "disabled"),
        "usage": None,
        "user": given.get("user"),
    }


def _tool(tool: dict[str, Any]) -> JsonObject:
    return {"description": None, "parameters": None, "strict": None, **tool}


def _without_null(given: dict[str, Any]) -> JsonObject:
    return {name: value for name, value in given.items() if value is not None}
