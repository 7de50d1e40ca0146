"""Answers as streams: what is said of a request while its sequences grow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from trunkline.engine.answers.chat import ChatChoice, chat_usage, shown_logprobs
from trunkline.engine.answers.completion import TextChoice, completion_usage
from trunkline.engine.answers.failure import failure_of
from trunkline.engine.answers.identity import answer_id
from trunkline.engine.answers.json_text import json_text
from trunkline.engine.answers.output_items import Event
from trunkline.engine.answers.responses import ResponseWriter
from trunkline.engine.answers.text_stream import Detokenizer
from trunkline.engine.request import Request
from trunkline.engine.requests.chat import ChatCompletionRequest
from trunkline.engine.requests.completion import CompletionRequest
from trunkline.engine.requests.responses import ResponsesRequest

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class StreamEvent:
    """One server-sent event.

    ``event`` is its name, which only those of a response have; ``data`` is JSON text.
    """

    event: str | None
    data: str


class AnswerStream(Protocol):
    """The events of one request's answer."""

    def progress(self) -> list[StreamEvent]:
        """What the tokens since the last call have added; it may be called at any time."""

    def finish(self) -> list[StreamEvent]:
        """All that is left to say; the request's sequences have all finished.

        Of a request that failed, its answer says why.
        """


def stream_of(
    request: Request,
    tokenizer: Detokenizer,
    created: int,
    clock: Callable[[], float] = time.time,
) -> AnswerStream:
    """The stream of a request that is being answered.

    Args:
        created: unix seconds.
        clock: unix seconds, for the time at which a response is complete.
    """
    body = request.body
    if isinstance(body, ChatCompletionRequest):
        return _ChatStream(request, body, tokenizer, created)
    if isinstance(body, CompletionRequest):
        return _CompletionStream(request, body, tokenizer, created)
    if isinstance(body, ResponsesRequest):
        return _ResponseStream(
            request, body, ResponseWriter(request, body, tokenizer, created), clock
        )
    raise TypeError(f"no streams of {type(body).__name__}")


class _ChatStream:
    """`chat.completion.chunk` objects, each with one choice.

    A choice begins with its role, and no choice begins before those with a lower index: clients
    keep the choices in the order in which they began.
    """

    def __init__(
        self,
        request: Request,
        body: ChatCompletionRequest,
        tokenizer: Detokenizer,
        created: int,
    ) -> None:
        self._request = request
        self._body = body
        self._choices = [
            ChatChoice(request, body, sequence, tokenizer) for sequence in request.sequences
        ]
        self._num_begun = 0  # choices
        self._head = {
            "id": answer_id("chatcmpl", request.line),
            "object": "chat.completion.chunk",
            "created": created,
            "model": body.model,
            "system_fingerprint": None,
        }

    def progress(self) -> list[StreamEvent]:
        return [
            event for choice in self._choices for event in self._chunks(choice, choice.deltas())
        ]

    def finish(self) -> list[StreamEvent]:
        if failure_of(self._request, self._body):
            return []
        events = []
        for choice in self._choices:
            events += self._chunks(choice, choice.last_deltas())
            events.append(self._chunk(choice, {}, choice.finish_reason))
        if self._body.include_usage:
            usage = chat_usage(self._request, self._choices).of_completion()
            events.append(_event({**self._head, "choices": [], "usage": usage}))
        return events

    def _chunks(self, choice: ChatChoice, deltas: list[JsonObject]) -> list[StreamEvent]:
        if not deltas:
            return []
        events = []
        for begun in self._choices[self._num_begun : choice.index + 1]:
            is_content = begun is choice and "content" in deltas[0]
            role = {"role": "assistant", "content": "" if is_content else None, "refusal": None}
            events.append(_event(self._with_choice(begun.index, role, None, None)))
        self._num_begun = max(self._num_begun, choice.index + 1)
        return [*events, *(self._chunk(choice, delta) for delta in deltas)]

    def _chunk(
        self, choice: ChatChoice, delta: JsonObject, finish_reason: str | None = None
    ) -> StreamEvent:
        """A chunk of a choice, which takes its log-probabilities with it.

        The last chunk has some, even if none, where they were asked for.
        """
        logprobs = None
        if choice.logprobs or (finish_reason is not None and choice.logprobs is not None):
            logprobs, choice.logprobs = shown_logprobs(choice.logprobs), []
        return _event(self._with_choice(choice.index, delta, logprobs, finish_reason))

    def _with_choice(
        self,
        index: int,
        delta: JsonObject,
        logprobs: JsonObject | None,
        finish_reason: str | None,
    ) -> JsonObject:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        usage = {"usage": None} if self._body.include_usage else {}
        return {**self._head, "choices": [choice], **usage}


class _CompletionStream:
    """`text_completion` objects, each with one choice."""

    def __init__(
        self,
        request: Request,
        body: CompletionRequest,
        tokenizer: Detokenizer,
        created: int,
    ) -> None:
        self._request = request
        self._body = body
        self._choices = [
            TextChoice(sequence.choice, body, sequence, tokenizer) for sequence in request.sequences
        ]
        self._begun: set[int] = set()  # choices
        self._head = {
            "id": answer_id("cmpl", request.line),
            "object": "text_completion",
            "created": created,
            "model": body.model,
            "system_fingerprint": None,
        }

    def progress(self) -> list[StreamEvent]:
        return [event for choice in self._choices for event in self._chunks(choice, is_last=False)]

    def finish(self) -> list[StreamEvent]:
        if failure_of(self._request, self._body):
            return []
        events = [event for choice in self._choices for event in self._chunks(choice, is_last=True)]
        if self._body.include_usage:
            usage = completion_usage(self._request, self._body).of_completion()
            events.append(_event({**self._head, "choices": [], "usage": usage}))
        return events

    def _chunks(self, choice: TextChoice, *, is_last: bool) -> list[StreamEvent]:
        text, logprobs = choice.read(is_end=is_last)
        if not (text or logprobs or is_last):
            return []
        is_first = choice.index not in self._begun
        self._begun.add(choice.index)
        shown = choice.shown(text, logprobs, is_first=is_first, is_last=is_last)
        usage = {"usage": None} if self._body.include_usage else {}
        return [_event({**self._head, "choices": [shown], **usage})]


class _ResponseStream:
    """The events of a response, named by their types."""

    def __init__(
        self,
        request: Request,
        body: ResponsesRequest,
        writer: ResponseWriter,
        clock: Callable[[], float],
    ) -> None:
        self._request = request
        self._body = body
        self._writer = writer
        self._clock = clock
        self._has_begun = False

    def progress(self) -> list[StreamEvent]:
        return _named([*self._begin(), *self._writer.read()])

    def finish(self) -> list[StreamEvent]:
        begun = self._begin()
        if error := failure_of(self._request, self._body):
            return _named([*begun, *self._writer.fail(error.message)])
        return _named([*begun, *self._writer.finish(completed=int(self._clock()))])

    def _begin(self) -> list[Event]:
        if self._has_begun:
            return []
        self._has_begun = True
        return self._writer.begin()


def _named(events: list[Event]) -> list[StreamEvent]:
    return [StreamEvent(event["type"], json_text(event)) for event in events]


def _event(body: JsonObject) -> StreamEvent:
    return StreamEvent(None, json_text(body))
