"""From a line to inputs of an encoder: parse, tokenize, check the limits.

Whatever is wrong with a line is that line's own `RequestError`; the others go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, count, islice

import numpy as np

from trunkline.engine.answers.embedding import check_dimensions
from trunkline.engine.answers.scoring import texts_to_embed
from trunkline.engine.encoder.model import Encoder, EncoderInput
from trunkline.engine.encoder.sequence import EncoderSequence
from trunkline.engine.encoder.tokenizer import EncoderTokenizer
from trunkline.engine.faults import admit_together
from trunkline.engine.request import Line, Refusal, Request
from trunkline.engine.requests.embedding import EmbeddingRequest
from trunkline.engine.requests.errors import RequestError, listed
from trunkline.engine.requests.parse import PoolingRequest, parse_request
from trunkline.engine.requests.scoring import RerankRequest, ScoreRequest
from trunkline.engine.sequence import SamplingParams
from trunkline.store.endpoints import EMBEDDINGS, RERANK, SCORE

# Lines that are tokenized in one call, which the tokenizer spreads over all cores.
TOKENIZE_CHUNK_LINES = 64

# The field that holds what may be too long.
_PARAMS = {EMBEDDINGS: "input", SCORE: "text_2", RERANK: "documents"}

_NOTHING_GENERATED = SamplingParams(max_tokens=0)


class EncoderAdmission:
    """Turns lines into requests for one encoder. Any thread may use it."""

    def __init__(
        self, tokenizer: EncoderTokenizer, encoder: Encoder, max_input_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._max_input_tokens = max_input_tokens
        self._endpoints = (
            (SCORE, RERANK) if encoder.is_cross_encoder else (EMBEDDINGS, SCORE, RERANK)
        )
        self._request_ids = count()

    def admit(self, lines: Iterable[Line]) -> Iterator[Request | Refusal]:
        """Each line's request, or what is wrong with it, in the order of the lines."""
        return admit_together(lines, TOKENIZE_CHUNK_LINES, self._admit_chunk)

    def _admit_chunk(self, lines: list[Line]) -> Iterator[Request | Refusal]:
        parsed: list[PoolingRequest | RequestError] = []
        for line in lines:
            try:
                parsed.append(self._parse(line))
            except RequestError as error:
                parsed.append(error)
        inputs = self._encode([body for body in parsed if not isinstance(body, RequestError)])
        for line, body in zip(lines, parsed, strict=True):
            if isinstance(body, RequestError):
                yield Refusal(line, body)
                continue
            try:
                yield self._request(line, body, next(inputs))
            except RequestError as error:
                yield Refusal(line, error)

    def _parse(self, line: Line) -> PoolingRequest:
        body = parse_request(line.endpoint, line.body)
        if line.endpoint not in self._endpoints:
            kind = "a cross-encoder" if self._encoder.is_cross_encoder else "an encoder"
            raise RequestError(
                f"The model '{body.model}' is {kind}: it answers {listed(self._endpoints)}, not "
                f"'{line.endpoint}'.",
                "model",
                "unsupported_endpoint",
            )
        assert isinstance(body, EmbeddingRequest | ScoreRequest | RerankRequest), line.endpoint
        if isinstance(body, EmbeddingRequest):
            check_dimensions(body, self._encoder.num_dimensions)
        return body

    def _encode(self, bodies: list[PoolingRequest]) -> Iterator[list[EncoderInput]]:
        """The inputs of each body, all tokenized together."""
        if self._encoder.is_cross_encoder:
            pairs = [_pairs(body) for body in bodies]
            sizes = list(map(len, pairs))
            encoded = iter(self._tokenizer.encode_pairs(list(chain.from_iterable(pairs))))
        else:
            texts = [_texts(body) for body in bodies]
            sizes = list(map(len, texts))
            encoded = iter(self._tokenizer.encode_texts(list(chain.from_iterable(texts))))
        for body, size in zip(bodies, sizes, strict=True):
            yield [*_token_inputs(body), *islice(encoded, size)]

    def _request(self, line: Line, body: PoolingRequest, inputs: list[EncoderInput]) -> Request:
        for item in inputs:
            self._check(line, item)
        number = next(self._request_ids)
        sequences = [
            EncoderSequence(
                *(number, index, item.tokens, _NOTHING_GENERATED),
                deadline=line.deadline,
                priority=line.priority,
                pair_start=item.pair_start,
            )
            for index, item in enumerate(inputs)
        ]
        return Request(
            line=line,
            body=body,
            sequences=list(sequences),
            num_prompt_tokens=sum(len(item.tokens) for item in inputs),
            num_unfinished=len(sequences),
            pooling=None if self._encoder.is_cross_encoder else self._encoder.pooling,
        )

    def _check(self, line: Line, item: EncoderInput) -> None:
        """Raise RequestError unless the model can read the input."""
        param = _PARAMS[line.endpoint]
        if not len(item.tokens):
            raise RequestError("A text has no tokens.", param, "invalid_value")
        if len(item.tokens) > self._max_input_tokens:
            what = "a pair of texts" if self._encoder.is_cross_encoder else "a text"
            raise RequestError(
                f"This model's maximum context length is {self._max_input_tokens} tokens. "
                f"However, {what} of your request has {len(item.tokens)} tokens. Please reduce "
                "its length.",
                param,
                "context_length_exceeded",
            )
        largest = int(item.tokens.max())
        if largest >= self._encoder.vocab_size:
            raise RequestError(
                f"Token id {largest} is outside of the model's vocabulary of "
                f"{self._encoder.vocab_size} tokens.",
                param,
                "invalid_value",
            )


def _texts(body: PoolingRequest) -> list[str]:
    """What an embedding model reads as text."""
    if isinstance(body, EmbeddingRequest):
        return [prompt for prompt in body.prompts if isinstance(prompt, str)]
    return texts_to_embed(body)


def _token_inputs(body: PoolingRequest) -> list[EncoderInput]:
    """What it reads as tokens: they are taken as they are, without special tokens."""
    if not isinstance(body, EmbeddingRequest):
        return []
    largest = np.iinfo(np.int32).max  # outside of every vocabulary
    return [
        EncoderInput(np.array([min(token, largest) for token in prompt], np.int32))
        for prompt in body.prompts
        if not isinstance(prompt, str)
    ]


def _pairs(body: PoolingRequest) -> list[tuple[str, str]]:
    """What a cross-encoder reads."""
    return [] if isinstance(body, EmbeddingRequest) else body.pairs
