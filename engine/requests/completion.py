"""The body of `/v1/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from trunkline.engine.requests.body import Refused
from trunkline.engine.requests.constraint import (
    STRUCTURED_FIELDS,
    Constraint,
    read_constraint,
)
from trunkline.engine.requests.errors import RequestError
from trunkline.engine.requests.prompts import Prompts, read_prompts
from trunkline.engine.requests.sampling import (
    ACCEPTED_IN_GENERATION,
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    REFUSED_IN_GENERATION,
    SamplingFields,
    include_usage,
)

DEFAULT_MAX_TOKENS = 16  # as OpenAI's API has it


class CompletionRequest(SamplingFields):
    """The body of a `/v1/completions` request."""

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    constraint: Constraint | None = None
    include_usage: bool = False

    sources: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "constraint": ("response_format", *STRUCTURED_FIELDS),
        "include_usage": ("stream_options",),
    }
    accepted: ClassVar[frozenset[str]] = ACCEPTED_IN_GENERATION | {"guided_decoding_backend"}
    refused: ClassVar[Mapping[str, Refused]] = {
        **REFUSED_IN_GENERATION,
        "suffix": Refused(("",), "Text is generated after the prompt only."),
        "add_special_tokens": Refused((True,), "Send token ids."),
        "prompt_embeds": Refused(reason="Send text or token ids."),
    }

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> dict[str, Any]:
        found = {"constraint": read_constraint(body), "include_usage": include_usage(body)}
        return found | (
            {"prompt": read_prompts(body["prompt"], "prompt")} if "prompt" in body else {}
        )

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise RequestError(
                "Invalid value for 'max_tokens': 0 is allowed with 'echo' only, since nothing "
                "would be returned.",
                "max_tokens",
                "invalid_value",
            )
        if self.best_of is not None:
            if self.best_of < (self.n or 1):
                raise RequestError(
                    f"'best_of' is {self.best_of}, so 'n' may be at most that, got {self.n}.",
                    "best_of",
                    "invalid_value",
                )
            if self.stream and self.best_of > (self.n or 1):
                raise RequestError(
                    "The best choices are known at the end only: 'best_of' must equal 'n' when "
                    "'stream' is true.",
                    "best_of",
                    "invalid_value",
                )
        self.check_min_tokens(self.output_limit)
        return self

    @property
    def output_limit(self) -> int:
        """The most tokens to generate per choice."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def num_top_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_prompt_top_logprobs(self) -> int | None:
        """Alternatives whose log-probabilities are wanted for each token of the prompt."""
        of_echo = self.logprobs if self.echo else None
        wanted = [number for number in (of_echo, self.prompt_logprobs) if number is not None]
        return max(wanted, default=None)
