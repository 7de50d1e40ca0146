"""Requests whose answers are written out, by a tokenizer that needs no model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from trunkline.engine.answers.format import AnswerFormat
from trunkline.engine.answers.streams import StreamEvent, stream_of
from trunkline.engine.outcome import answered
from trunkline.engine.prompt_reading import PromptRecord
from trunkline.engine.request import Line, Request
from trunkline.engine.requests.parse import parse_request
from trunkline.engine.sequence import FinishReason, SamplingParams
from trunkline.engine.sequence import Sequence as TokenSequence
from trunkline.engine.step_plan import TokenLogprobs
from trunkline.store.records import Outcome

EOS = 256
SPECIAL = {EOS: "<|im_end|>", 257: "[TOOL_CALLS]", 258: "<s>"}
CREATED = 1_700_000_000


class ByteTokenizer:
    """A token for each byte, and some special ones."""

    eos_token_ids = frozenset([EOS])

    def decode(self, token_ids: Sequence[int], *, keep_special_tokens: bool = False) -> str:
        kept = [t for t in token_ids if keep_special_tokens or t not in SPECIAL]
        return b"".join(map(self.token_bytes, kept)).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return SPECIAL[token_id].encode() if token_id in SPECIAL else bytes([token_id])

    def encode(self, text: str) -> list[int]:
        """Special tokens by their names."""
        for token, name in SPECIAL.items():
            if name in text:
                parts = [self.encode(part) for part in text.split(name)]
                return [*parts[0], *(t for part in parts[1:] for t in (token, *part))]
        return list(text.encode())


TOKENIZER = ByteTokenizer()


@dataclass
class Written:
    """A request and what the model wrote: its parts grow no more."""

    request: Request

    def outcome(self) -> Outcome:
        return answered(self.request, TOKENIZER, CREATED)

    def body(self) -> Any:
        outcome = self.outcome()
        assert outcome.status_code == 200
        assert outcome.body is not None
        return json.loads(outcome.body)

    def events(self, sizes: Iterator[int]) -> Iterator[StreamEvent]:
        """The answer as a stream that looks at the sequences whenever they have grown.

        Args:
            sizes: by how many tokens they do so, one sequence after the other.
        """
        growing = copy.copy(self.request)
        growing.sequences = [copy.copy(sequence) for sequence in self.request.sequences]
        for sequence in growing.sequences:
            sequence.output, sequence.logprobs, sequence.finish_reason = [], [], None
        stream = stream_of(growing, TOKENIZER, CREATED, clock=lambda: CREATED)
        pairs = list(zip(self.request.sequences, growing.sequences, strict=True))
        while any(len(now.output) < len(end.output) for end, now in pairs):
            for end, now in pairs:
                upto = len(now.output) + next(sizes)
                now.output, now.logprobs = end.output[:upto], end.logprobs[:upto]
            yield from stream.progress()
        for end, now in pairs:
            now.finish_reason = end.finish_reason
        yield from stream.finish()

    def chunks(self, sizes: Iterator[int]) -> list[Any]:
        return [json.loads(event.data) for event in self.events(sizes)]


def logprobs_of(tokens: Iterable[int], num_top: int) -> list[TokenLogprobs]:
    """Made up from the tokens and their places."""
    return [
        TokenLogprobs(
            -0.25 * (i % 7) - 0.125,
            tuple((token + k) % 256 for k in range(num_top)),
            tuple(-0.25 * (i % 7) - 0.125 - k for k in range(num_top)),
        )
        for i, token in enumerate(tokens)
    ]


Write = Callable[..., Written]


@pytest.fixture
def write() -> Write:
    """A request to an endpoint, and the texts of its sequences.

    A text that does not end with the end-of-sequence token was cut off by its length.
    """

    def write(
        endpoint: str,
        body: dict[str, Any],
        *texts: str | bytes,
        answer_format: AnswerFormat | None = None,
        prompts: tuple[str, ...] = ("<s>Prompt",),
        num_logprobs: int | None = None,
        **sampling: Any,
    ) -> Written:
        body = {"model": "m", **body}
        per_prompt = len(texts) // len(prompts)
        params = SamplingParams(
            max_tokens=1000,
            stop_token_ids=frozenset([EOS]),
            num_top_logprobs=num_logprobs,
            **sampling,
        )
        sequences = []
        for i, text in enumerate(texts):
            prompt = TOKENIZER.encode(prompts[i // per_prompt])
            output = list(text) if isinstance(text, bytes) else TOKENIZER.encode(text)
            sequence = TokenSequence(0, i, np.array(prompt, np.int32), params, output=output)
            is_stopped = output[-1:] == [EOS] or any(
                stop in TOKENIZER.decode(output) for stop in params.stop_strings
            )
            sequence.finish_reason = FinishReason.STOP if is_stopped else FinishReason.LENGTH
            if num_logprobs is not None:
                sequence.logprobs = logprobs_of(output, num_logprobs)
                read = logprobs_of(prompt, num_logprobs)
                sequence.record = PromptRecord(
                    np.array([np.nan, *(entry.sampled for entry in read[1:])], np.float32),
                    np.array([entry.top_ids for entry in read], np.int32),
                    np.array([entry.top_logprobs for entry in read], np.float32),
                )
            sequences.append(sequence)
        line = Line("batch_1", 7, "a", endpoint, body)
        num_prompt_tokens = sum(len(s.prompt) for s in sequences[::per_prompt])
        request = Request(
            line=line,
            body=parse_request(endpoint, body),
            sequences=sequences,
            num_prompt_tokens=num_prompt_tokens,
            num_unfinished=0,
            format=AnswerFormat() if answer_format is None else answer_format,
        )
        return Written(request)

    return write
