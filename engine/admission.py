"""From a request's body to sequences: parse, render, tokenize, check the limits.

Whatever is wrong with a line is that line's own `RequestError`; the others go on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.answers.embedding import check_dimensions
from trunkline.engine.answers.format import AnswerFormat, answer_format, model_family
from trunkline.engine.answers.scoring import texts_to_embed
from trunkline.engine.chat_prompt import ChatPrompt, chat_prompt
from trunkline.engine.constraining import Rule, rule_of
from trunkline.engine.faults import admit_together
from trunkline.engine.grammar import Grammars
from trunkline.engine.pooling import PoolingConfig
from trunkline.engine.prompt_reading import PromptReading
from trunkline.engine.request import Line, Refusal, Request
from trunkline.engine.requests.chat import ChatCompletionRequest
from trunkline.engine.requests.completion import CompletionRequest
from trunkline.engine.requests.embedding import EmbeddingRequest
from trunkline.engine.requests.errors import RequestError
from trunkline.engine.requests.parse import AnyRequest, PoolingRequest, parse_request
from trunkline.engine.requests.responses import ResponsesRequest
from trunkline.engine.requests.scoring import RerankRequest
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.tokenizer import Tokenizer

# Lines that are tokenized in one call, which the tokenizer spreads over all cores.
TOKENIZE_CHUNK_LINES = 256

LogitBias = tuple[tuple[int, float], ...]

# A token id as a key of JSON.
_TOKEN_ID = re.compile(r"[0-9]{1,18}")

# The one token that is sampled of a prompt whose own rows are all that is wanted.
READ_ONLY = SamplingParams(max_tokens=1, temperature=0.0)


@dataclass(frozen=True)
class Limits:
    """What bounds a sequence's length, in tokens."""

    max_model_tokens: int  # the model's context
    kv_cache_tokens: int  # capacity of the whole cache


@dataclass(frozen=True)
class _Parsed:
    """A line before its texts are tokenized.

    Attributes:
        generation: the fields that say how to generate; None where nothing is generated.
        chat: the rendered conversation.
        texts: bare prompts, text or token ids.
    """

    line: Line
    body: AnyRequest
    generation: ChatCompletionRequest | CompletionRequest | None
    rule: Rule | None
    chat: ChatPrompt | None
    texts: list[str] | list[list[int]]

    @property
    def where(self) -> str:
        """The field that the prompts come from."""
        if isinstance(self.body, ResponsesRequest | EmbeddingRequest):
            return "input"
        if isinstance(self.body, ChatCompletionRequest):
            return "messages"
        if isinstance(self.body, CompletionRequest):
            return "prompt"
        return "documents" if isinstance(self.body, RerankRequest) else "text_2"


class Admission:
    """Turns lines into requests for one model that generates. Any thread may use it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        limits: Limits,
        grammars: Grammars,
        pooling: PoolingConfig,
        num_dimensions: int,
    ) -> None:
        """Of a model.

        Args:
            tokenizer: the model's.
            limits: on the length of a sequence.
            grammars: what answers can be held to.
            pooling: how a text's vector is made.
            num_dimensions: of such a vector.
        """
        self._tokenizer = tokenizer
        self._limits = limits
        self._grammars = grammars
        self._pooling = pooling
        self._num_dimensions = num_dimensions
        self._family = model_family(tokenizer.chat_template, tokenizer.vocabulary)
        # Some tokenizers have more tokens than their models.
        self._vocab_size = min(tokenizer.vocab_size, grammars.logits_vocab_size)
        self._request_ids = count()

    def admit(self, lines: Iterable[Line]) -> Iterator[Request | Refusal]:
        """Admit `lines`, in their order."""
        return admit_together(lines, TOKENIZE_CHUNK_LINES, self._admit_chunk)

    def _admit_chunk(self, lines: list[Line]) -> Iterator[Request | Refusal]:
        parsed: list[_Parsed | Refusal] = []
        for line in lines:
            try:
                parsed.append(self._parse(line))
            except RequestError as error:
                parsed.append(Refusal(line, error))
        good = [each for each in parsed if isinstance(each, _Parsed)]
        chats = [each.chat.text for each in good if each.chat is not None]
        texts = [text for each in good for text in each.texts if isinstance(text, str)]
        encoded_chats = iter(self._tokenizer.encode_many(chats, add_special_tokens=False))
        encoded_texts = iter(self._tokenizer.encode_many(texts, add_special_tokens=True))
        for each in parsed:
            if isinstance(each, Refusal):
                yield each
                continue
            prompts = [
                next(encoded_texts) if isinstance(text, str) else _token_ids(text)
                for text in each.texts
            ]
            if each.chat is not None:
                prompts.append(next(encoded_chats))
            try:
                yield self._request(each, prompts)
            except RequestError as error:
                yield Refusal(each.line, error)

    def _parse(self, line: Line) -> _Parsed:
        body = parse_request(line.endpoint, line.body)
        if isinstance(body, CompletionRequest):
            self._check_stream(line, is_stream=body.stream)
            rule = rule_of(body, self._family, self._grammars)
            return _Parsed(line, body, body, rule, None, body.prompt)
        if isinstance(body, ChatCompletionRequest | ResponsesRequest):
            self._check_stream(line, is_stream=body.stream)
            request = body.as_chat() if isinstance(body, ResponsesRequest) else body
            chat = chat_prompt(self._tokenizer, self._family, body)
            rule = rule_of(
                request,
                self._family,
                self._grammars,
                may_think=chat.may_think,
                starts_thinking=chat.starts_thinking,
            )
            return _Parsed(line, body, request, rule, chat, [])
        if isinstance(body, EmbeddingRequest):
            check_dimensions(body, self._num_dimensions)
        return _Parsed(line, body, None, None, None, self._texts_to_embed(body))

    def _texts_to_embed(self, body: PoolingRequest) -> list[str] | list[list[int]]:
        texts = body.prompts if isinstance(body, EmbeddingRequest) else texts_to_embed(body)
        if not self._pooling.lowercases:
            return texts
        return [text.lower() for text in texts if isinstance(text, str)] or texts

    def _check_stream(self, line: Line, *, is_stream: bool) -> None:
        if is_stream and not line.is_live:
            raise RequestError(
                "Streaming is not supported in the Batch API.", "stream", "streaming_unsupported"
            )

    def _request(self, parsed: _Parsed, prompts: list[NDArray[np.int32]]) -> Request:
        number = next(self._request_ids)
        logit_bias = self._logit_bias(parsed.generation)
        sequences: list[Sequence] = []
        for prompt in prompts:
            self._check(prompt, parsed)
            for _ in range(_num_sequences(parsed.generation)):
                index = len(sequences)
                sequences.append(
                    Sequence(
                        *(number, index, prompt),
                        self._sampling(parsed, len(prompt), index, logit_bias),
                        deadline=parsed.line.deadline,
                        priority=parsed.line.priority,
                        reading=self._reading(parsed),
                        is_read_only=_is_read_only(parsed.generation),
                    )
                )
        return Request(
            parsed.line,
            parsed.body,
            sequences,
            sum(map(len, prompts)),
            len(sequences),
            format=self._format(parsed),
            pooling=None if parsed.generation is not None else self._pooling,
        )

    def _format(self, parsed: _Parsed) -> AnswerFormat:
        chat, generation = parsed.chat, parsed.generation
        if chat is None or not isinstance(generation, ChatCompletionRequest):
            return AnswerFormat()
        return answer_format(self._family, generation.tool_use, chat.starts_thinking)

    def _reading(self, parsed: _Parsed) -> PromptReading | None:
        if parsed.generation is None:
            return PromptReading(pooling=self._pooling.mode)
        if isinstance(parsed.generation, CompletionRequest):
            num_top = parsed.generation.num_prompt_top_logprobs
            if num_top is not None:
                return PromptReading(num_top_logprobs=min(num_top, self._vocab_size))
        return None

    def _check(self, prompt: NDArray[np.int32], parsed: _Parsed) -> None:
        """Raise RequestError unless the prompt has a place in model and cache."""
        where = parsed.where
        if not len(prompt):
            raise RequestError("The prompt has no tokens.", where)
        largest = int(prompt.max())
        if largest >= self._vocab_size:
            raise RequestError(
                f"Token id {largest} is outside of the model's vocabulary of "
                f"{self._vocab_size} tokens.",
                where,
            )
        # Of a prompt that is only read a token is sampled all the same, though never computed.
        is_read_only = _is_read_only(parsed.generation)
        wanted = len(prompt) + (0 if is_read_only else _output_limit(parsed.generation) or 1)
        limits = [
            (self._limits.max_model_tokens, "This model's maximum context length"),
            (self._limits.kv_cache_tokens - is_read_only, "The capacity of the KV cache"),
        ]
        if parsed.generation is None and self._pooling.max_input_tokens is not None:
            limits.append((self._pooling.max_input_tokens, "This model's longest input"))
        for limit, of in limits:
            if wanted > limit:
                raise RequestError(
                    f"{of} is {limit} tokens. However, you requested {wanted} tokens "
                    f"({len(prompt)} in the {where}, {wanted - len(prompt)} in the completion). "
                    f"Please reduce the length of the {where} or completion.",
                    where,
                    "context_length_exceeded",
                )

    def _sampling(
        self, parsed: _Parsed, num_prompt_tokens: int, index: int, logit_bias: LogitBias
    ) -> SamplingParams:
        body, line, rule = parsed.generation, parsed.line, parsed.rule
        if body is None:
            return READ_ONLY
        room = min(self._limits.max_model_tokens, self._limits.kv_cache_tokens) - num_prompt_tokens
        stop_ids = frozenset(body.stop_token_ids or ())
        if not body.ignore_eos:
            stop_ids |= self._tokenizer.eos_token_ids
        # Without a seed of its own, a request samples the same when it is run again after a crash.
        source = f"{line.batch_id}:{line.line}" if body.seed is None else str(body.seed)
        digest = hashlib.blake2b(f"{source}:{index}".encode(), digest_size=8).digest()
        num_top_logprobs = body.num_top_logprobs
        if num_top_logprobs is None and _num_sequences(body) > (body.n or 1):
            num_top_logprobs = 0  # the best are those with the highest
        return SamplingParams(
            max_tokens=min(body.output_limit or room, room) if not _is_read_only(body) else 1,
            min_tokens=body.min_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(body.top_k or 0, 0),
            seed=int.from_bytes(digest, "little") >> 1,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            repetition_penalty=body.repetition_penalty or 1.0,
            logit_bias=logit_bias,
            stop_token_ids=stop_ids,
            stop_strings=tuple(body.stop or ()),
            num_top_logprobs=num_top_logprobs,
            grammar=None if rule is None else rule.grammar,
            grammar_after_token=None if rule is None else rule.after_token,
            grammar_unless_first_token=None if rule is None else rule.unless_first_token,
        )

    def _logit_bias(self, body: ChatCompletionRequest | CompletionRequest | None) -> LogitBias:
        pairs = []
        given = None if body is None else body.logit_bias
        for name, bias in (given or {}).items():
            if not (_TOKEN_ID.fullmatch(name) and int(name) < self._vocab_size):
                raise RequestError(
                    f"Invalid key '{name}' in 'logit_bias': expected a token id below "
                    f"{self._vocab_size}.",
                    "logit_bias",
                    "invalid_value",
                )
            pairs.append((int(name), bias))
        return tuple(pairs)


def _token_ids(prompt: list[int]) -> NDArray[np.int32]:
    # An id too large for the array is outside of the vocabulary all the more.
    largest = np.iinfo(np.int32).max
    return np.array([min(token, largest) for token in prompt], np.int32)


def _num_sequences(body: ChatCompletionRequest | CompletionRequest | None) -> int:
    """How many answers are generated for each prompt."""
    if body is None:
        return 1
    best_of = body.best_of if isinstance(body, CompletionRequest) else None
    return best_of or body.n or 1


def _is_read_only(body: ChatCompletionRequest | CompletionRequest | None) -> bool:
    """Whether nothing is wanted but what the prompt's own rows say."""
    return body is None or body.output_limit == 0


def _output_limit(body: ChatCompletionRequest | CompletionRequest | None) -> int | None:
    return None if body is None else body.output_limit
