"""One stream of tokens to generate: a prompt, how to sample, and what came out so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.prompt_reading import PromptReading, PromptRecord
from trunkline.engine.step_plan import TokenLogprobs


class FinishReason(Enum):
    """Why a sequence ended, in the API's words."""

    STOP = "stop"  # an end-of-sequence token, a stop token or a stop string
    LENGTH = "length"  # max_tokens or the model's context


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, and when to stop. Validated at admission.

    ``temperature == 0`` is greedy. ``top_k == 0`` and ``top_p == 1`` do not restrict.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: frozenset[int] = frozenset()  # the model's end-of-sequence tokens among them
    stop_strings: tuple[str, ...] = ()
    num_top_logprobs: int | None = None  # None: no log-probabilities; 0: the sampled token's only
    grammar: str | None = None  # of llguidance; the output follows it
    # The output follows the grammar after the first of these tokens; None: from its beginning.
    grammar_after_token: int | None = None
    # An output that does not begin with this token follows the grammar from its beginning all the
    # same; None: however it begins, it follows after the other token.
    grammar_unless_first_token: int | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def needs_tokens(self) -> bool:
        """Whether the next token can be sampled only when all those before are on the host."""
        return self.has_penalties or self.grammar is not None

    @property
    def has_penalties(self) -> bool:
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )


@dataclass(eq=False)
class Sequence:
    """A prompt and its growing output. One request has n of them."""

    request_id: int  # the engine's own number of the request
    choice: int  # 0..n-1 within the request
    prompt: NDArray[np.int32]  # [num_prompt_tokens]
    sampling: SamplingParams
    # When its batch has to be through, unix seconds. The earliest goes first.
    deadline: float = 0.0
    priority: int = 0  # its batch's; a higher one goes first, whatever the deadlines
    output: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    # Prompt tokens whose KV another sequence had paid for; None until the first step it is in.
    num_cached_tokens: int | None = None
    num_preemptions: int = 0
    # What is kept of the model's rows for the prompt; None: nothing but the next token.
    reading: PromptReading | None = None
    record: PromptRecord | None = None  # what has been kept; there from the first row on
    # Only what is kept of the prompt's rows is wanted; the token that is sampled is thrown away.
    is_read_only: bool = False
    # The sequence shares prefixes with others of the same group only.
    sharing_group: int = 0
    # Why the sequence could not be continued, though it is finished; its output is not an answer.
    failure: str | None = None

    @property
    def num_tokens(self) -> int:
        """Known tokens: prompt and output."""
        return len(self.prompt) + len(self.output)

    def tokens(self, start: int, end: int) -> NDArray[np.int32]:
        """Known tokens at the positions [start, end)."""
        split = len(self.prompt)
        if end <= split:
            return self.prompt[start:end]
        generated = np.array(self.output[max(start - split, 0) : end - split], dtype=np.int32)
        return np.concatenate([self.prompt[start:], generated]) if start < split else generated

    @property
    def max_num_tokens(self) -> int:
        return len(self.prompt) + self.sampling.max_tokens
