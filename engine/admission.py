"""From a batch line to sequences: parse, render, tokenize, check the limits.

Whatever is wrong with a line is that line's own `RequestError`; the others go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.request_body import (
    ChatCompletionRequest,
    GenerationRequest,
    RequestError,
    parse_request,
)
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.tokenizer import ChatTemplateError, Tokenizer

# Lines that are tokenized in one call, which the tokenizer spreads over all cores.
TOKENIZE_CHUNK_LINES = 256


@dataclass(frozen=True)
class Line:
    """One line of a batch file, as the engine gets it."""

    batch_id: str
    line: int  # from 1
    custom_id: str
    endpoint: str
    body: dict[str, Any]
    deadline: float = 0.0  # unix seconds
    priority: int = 0


@dataclass(eq=False)
class Request:
    """A line that is being answered: n sequences for each of its prompts."""

    line: Line
    body: GenerationRequest
    sequences: list[Sequence]
    num_prompt_tokens: int  # each prompt counted once
    num_unfinished: int  # sequences


@dataclass(frozen=True)
class Refusal:
    """A line that cannot be answered."""

    line: Line
    error: RequestError


@dataclass(frozen=True)
class Limits:
    """What bounds a sequence's length, in tokens."""

    max_model_tokens: int  # the model's context
    kv_cache_tokens: int  # capacity of the whole cache


class Admission:
    """Turns lines into requests for one model."""

    def __init__(self, tokenizer: Tokenizer, limits: Limits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        self._num_requests = 0

    def admit(self, lines: Iterable[Line]) -> Iterator[Request | Refusal]:
        """Admit `lines`, in their order."""
        remaining = iter(lines)
        while chunk := list(islice(remaining, TOKENIZE_CHUNK_LINES)):
            yield from self._admit_chunk(chunk)

    def _admit_chunk(self, lines: list[Line]) -> Iterator[Request | Refusal]:
        parsed: list[GenerationRequest | RequestError] = []
        chats: list[str] = []  # of all lines
        texts: list[str] = []
        for line in lines:
            try:
                request = parse_request(line.endpoint, line.body)
                if isinstance(request, ChatCompletionRequest):
                    chats.append(self._rendered(request))
                else:
                    texts.extend(prompt for prompt in request.prompt if isinstance(prompt, str))
                parsed.append(request)
            except RequestError as error:
                parsed.append(error)
        encoded_chats = iter(self._tokenizer.encode_many(chats, add_special_tokens=False))
        encoded_texts = iter(self._tokenizer.encode_many(texts, add_special_tokens=True))
        for line, body in zip(lines, parsed, strict=True):
            if isinstance(body, RequestError):
                yield Refusal(line, body)
                continue
            if isinstance(body, ChatCompletionRequest):
                prompts = [next(encoded_chats)]
            else:
                prompts = [
                    next(encoded_texts) if isinstance(prompt, str) else self._token_ids(prompt)
                    for prompt in body.prompt
                ]
            try:
                yield self._request(line, body, prompts)
            except RequestError as error:
                yield Refusal(line, error)

    def _rendered(self, body: ChatCompletionRequest) -> str:
        try:
            return self._tokenizer.render_chat(body.messages, body.chat_template_kwargs)
        except ChatTemplateError as error:
            raise RequestError(str(error), "messages") from error

    def _token_ids(self, prompt: list[int]) -> NDArray[np.int32]:
        # An id too large for the array is outside of the vocabulary all the more.
        return np.minimum(np.array(prompt, np.int64), np.iinfo(np.int32).max).astype(np.int32)

    def _request(
        self, line: Line, body: GenerationRequest, prompts: list[NDArray[np.int32]]
    ) -> Request:
        sequences = []
        for p, prompt in enumerate(prompts):
            self._check(prompt, body)
            for choice in range(body.n or 1):
                index = p * (body.n or 1) + choice
                sampling = self._sampling(line, body, len(prompt), index)
                sequences.append(
                    Sequence(
                        *(self._num_requests, index, prompt, sampling),
                        deadline=line.deadline,
                        priority=line.priority,
                    )
                )
        self._num_requests += 1
        return Request(line, body, sequences, sum(map(len, prompts)), len(sequences))

    def _check(self, prompt: NDArray[np.int32], body: GenerationRequest) -> None:
        """Raise RequestError unless the prompt has a place in model and cache."""
        what = "messages" if isinstance(body, ChatCompletionRequest) else "prompt"
        if not len(prompt):
            raise RequestError("The prompt has no tokens.", what)
        largest = int(prompt.max())
        if largest >= self._tokenizer.vocab_size:
            raise RequestError(
                f"Token id {largest} is outside of the model's vocabulary of "
                f"{self._tokenizer.vocab_size} tokens.",
                what,
            )
        wanted = len(prompt) + (body.output_limit or 1)
        for limit, of in (
            (self._limits.max_model_tokens, "This model's maximum context length"),
            (self._limits.kv_cache_tokens, "The capacity of the KV cache"),
        ):
            if wanted > limit:
                raise RequestError(
                    f"{of} is {limit} tokens. However, you requested {wanted} tokens "
                    f"({len(prompt)} in the {what}, {wanted - len(prompt)} in the completion). "
                    f"Please reduce the length of the {what} or completion.",
                    what,
                    "context_length_exceeded",
                )

    def _sampling(
        self, line: Line, body: GenerationRequest, num_prompt_tokens: int, index: int
    ) -> SamplingParams:
        room = min(self._limits.max_model_tokens, self._limits.kv_cache_tokens) - num_prompt_tokens
        stop_ids = frozenset(body.stop_token_ids or ())
        if not body.ignore_eos:
            stop_ids |= self._tokenizer.eos_token_ids
        # Without a seed of its own, a request samples the same when it is run again after a crash.
        source = f"{line.batch_id}:{line.line}" if body.seed is None else str(body.seed)
        digest = hashlib.blake2b(f"{source}:{index}".encode(), digest_size=8).digest()
        return SamplingParams(
            max_tokens=min(body.output_limit or room, room),
            min_tokens=body.min_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(body.top_k or 0, 0),
            seed=int.from_bytes(digest, "little") >> 1,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            repetition_penalty=body.repetition_penalty or 1.0,
            logit_bias=self._logit_bias(body),
            stop_token_ids=stop_ids,
            stop_strings=tuple(body.stop or ()),
            num_top_logprobs=body.num_top_logprobs,
        )

    def _logit_bias(self, body: GenerationRequest) -> tuple[tuple[int, float], ...]:
        pairs = []
        for name, bias in (body.logit_bias or {}).items():
            if not (name.isdecimal() and int(name) < self._tokenizer.vocab_size):
                raise RequestError(
                    f"Invalid key '{name}' in 'logit_bias': expected a token id below "
                    f"{self._tokenizer.vocab_size}.",
                    "logit_bias",
                    "invalid_value",
                )
            pairs.append((int(name), bias))
        return tuple(pairs)
