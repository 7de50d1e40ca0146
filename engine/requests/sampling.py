"""The fields by which every endpoint that generates text says how to choose tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from trunkline.engine.requests.body import ACCEPTED_EVERYWHERE, Refused, RequestBody
from trunkline.engine.requests.checks import as_bool, as_object, nothing_else
from trunkline.engine.requests.errors import RequestError, unsupported_parameter

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
# Each of them is looked at for every token that is generated.
MAX_LOGIT_BIASES = 1024
MAX_STOPS = 128


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


TokenId = Annotated[int, Field(ge=0)]
StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    BeforeValidator(_as_list),
    Field(max_length=MAX_STOPS),
]
LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_LOGIT_BIASES)
]

ACCEPTED_IN_GENERATION = ACCEPTED_EVERYWHERE | {"service_tier", "metadata", "store"}

# vLLM's fields whose defaults ask for nothing.
REFUSED_IN_GENERATION: Mapping[str, Refused] = {
    "min_p": Refused((0,), "Use 'top_p' or 'top_k'."),
    "typical_p": Refused((1,), "Use 'top_p' or 'top_k'."),
    "use_beam_search": Refused((False,)),
    "length_penalty": Refused((1,)),
    "include_stop_str_in_output": Refused((False,)),
    "skip_special_tokens": Refused((True,)),
    "spaces_between_special_tokens": Refused((True,)),
    "truncate_prompt_tokens": Refused((), "Send a prompt that fits."),
    "allowed_token_ids": Refused(([],), "Use 'structured_outputs' or 'logit_bias'."),
    "bad_words": Refused(([],), "Use 'logit_bias'."),
    "return_token_ids": Refused((False,)),
    "return_tokens_as_token_ids": Refused((False,)),
    "logits_processors": Refused(([],)),
}


class SamplingFields(RequestBody):
    """How tokens are chosen, and when to stop."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_tokens: int = Field(0, ge=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, allow_inf_nan=False)
    logit_bias: LogitBias | None = None
    stop: StopStrings | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOPS)] | None = None
    ignore_eos: bool = False
    stream: bool = False

    def check_min_tokens(self, output_limit: int | None) -> None:
        """Raise RequestError when more tokens are wanted than are allowed."""
        if output_limit is not None and self.min_tokens > output_limit:
            raise RequestError(
                f"'min_tokens' is {self.min_tokens}, but at most {output_limit} tokens may be "
                "generated.",
                "min_tokens",
                "invalid_value",
            )


def include_usage(body: Mapping[str, Any]) -> bool:
    """What `stream_options` say about a last chunk with the usage."""
    given = body.get("stream_options")
    if given is None:
        return False
    options = as_object(given, "stream_options")
    if body.get("stream") is not True:
        raise RequestError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
            "invalid_value",
        )
    if options.get("continuous_usage_stats"):
        raise unsupported_parameter("stream_options.continuous_usage_stats")
    known = ("include_usage", "include_obfuscation", "continuous_usage_stats")
    nothing_else(options, "stream_options", known)
    wanted = options.get("include_usage")
    return wanted is not None and as_bool(wanted, "stream_options.include_usage")
