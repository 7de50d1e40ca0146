"""Tokens that a request took, in the words of each endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.engine.sequence import Sequence as TokenSequence


@dataclass(frozen=True)
class Usage:
    """Tokens of one request."""

    num_prompt_tokens: int  # each prompt counted once
    num_cached_tokens: int  # of them, those that another request had paid for
    num_output_tokens: int  # of all sequences, also of those that are no choice of the answer
    num_reasoning_tokens: int = 0  # of the output

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens

    def of_completion(self) -> dict[str, Any]:
        """The `usage` of chat and text completions."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_output_tokens,
            "total_tokens": self.num_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.num_reasoning_tokens},
        }

    def of_response(self) -> dict[str, Any]:
        """The `usage` of a response."""
        return {
            "input_tokens": self.num_prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": self.num_cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": self.num_output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.num_reasoning_tokens},
            "total_tokens": self.num_tokens,
        }


def usage_of(
    sequences: Sequence[TokenSequence], num_prompts: int, num_reasoning_tokens: int = 0
) -> Usage:
    """What the sequences of a request took.

    The sequences of a prompt share it among themselves, and it is billed once: what counts as
    cached is that of the sequence that found the least.

    Args:
        sequences: as many for each prompt, those of a prompt one after the other.
    """
    per_prompt = len(sequences) // num_prompts
    prompts = [sequences[i : i + per_prompt] for i in range(0, len(sequences), per_prompt)]
    return Usage(
        num_prompt_tokens=sum(len(prompt[0].prompt) for prompt in prompts),
        num_cached_tokens=sum(min(s.num_cached_tokens or 0 for s in prompt) for prompt in prompts),
        num_output_tokens=sum(len(sequence.output) for sequence in sequences),
        num_reasoning_tokens=num_reasoning_tokens,
    )
