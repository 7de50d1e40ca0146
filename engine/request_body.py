"""The bodies of batch lines, parsed once into types that cannot be wrong.

Fields are OpenAI's, with vLLM's additions (`top_k`, `min_tokens`, `ignore_eos`,
`repetition_penalty`, `stop_token_ids`). Fields that no one has heard of are ignored; a field that
OpenAI defines and this engine cannot honour is an error that names it, unless it does not change
the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from trunkline.store.json_types import NAMES, json_type

CHAT_COMPLETIONS = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class RequestError(Exception):
    """A request that cannot be run: the line's own error, in the API's shape.

    Attributes:
        message: what was given and what is allowed.
        param: the field at fault, or None.
        code: a short identifier, or None.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    status_code: ClassVar[int] = 400

    def as_body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": "invalid_request_error",
                "param": self.param,
                "code": self.code,
            }
        }


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _is_token_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _as_prompts(value: object) -> object:
    """A list of prompts, each text or token ids, from any form that the API allows."""
    prompts = [value] if isinstance(value, str) or _is_token_ids(value) else value
    if not (
        isinstance(prompts, list)
        and prompts
        and all(prompts)
        and (all(isinstance(p, str) for p in prompts) or all(map(_is_token_ids, prompts)))
    ):
        raise ValueError(
            "'prompt' must be a string, an array of strings, an array of token ids, or an array "
            "of arrays of token ids, none of them empty"
        )
    return prompts


TokenIds = list[Annotated[int, Field(ge=0)]]
StopStrings = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list)]


class SamplingFields(BaseModel):
    """What chat and text completions have in common."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    model: str
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0)
    n: int | None = Field(None, ge=1, le=128)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stop: StopStrings | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool = False

    # Field -> the values that ask for nothing.
    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = {}


class ChatCompletionRequest(SamplingFields):
    """The body of a `/v1/chat/completions` line."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    chat_template_kwargs: dict[str, Any] | None = None

    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "response_format": (None, {"type": "text"}),
        "audio": (None,),
        "modalities": (None, ["text"]),
        "web_search_options": (None,),
        "stream": (None, False),
    }

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' is given, so 'logprobs' must be true")
        return self

    @property
    def output_limit(self) -> int | None:
        """The most tokens to generate per choice; None: as many as fit."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens

    @property
    def num_top_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(SamplingFields):
    """The body of a `/v1/completions` line."""

    prompt: Annotated[list[str] | list[TokenIds], BeforeValidator(_as_prompts)]
    logprobs: int | None = Field(None, ge=0, le=20)

    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "best_of": (None, 1),
        "echo": (None, False),
        "suffix": (None, ""),
        "stream": (None, False),
    }

    @property
    def output_limit(self) -> int | None:
        """The most tokens to generate per choice: 16 unless told, as OpenAI's API has it."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def num_top_logprobs(self) -> int | None:
        return self.logprobs


GenerationRequest = ChatCompletionRequest | CompletionRequest
REQUEST_TYPES: Mapping[str, type[ChatCompletionRequest] | type[CompletionRequest]] = {
    CHAT_COMPLETIONS: ChatCompletionRequest,
    COMPLETIONS: CompletionRequest,
}


def parse_request(endpoint: str, body: object) -> GenerationRequest:
    """Parse the body of a batch line.

    Raises:
        RequestError: a field is missing, of the wrong type, out of range or not supported.
    """
    kind = REQUEST_TYPES.get(endpoint)
    if kind is None:
        allowed = ", ".join(sorted(REQUEST_TYPES))
        raise RequestError(
            f"The endpoint '{endpoint}' is not supported. Supported: {allowed}.", "url"
        )
    if not isinstance(body, dict):
        raise RequestError("The request body must be a JSON object.")
    for name, harmless in kind.unsupported.items():
        if name in body and body[name] not in harmless:
            raise RequestError(
                f"The parameter '{name}' is not supported.", name, "unsupported_parameter"
            )
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _request_error(error) from None


def _request_error(error: ValidationError) -> RequestError:
    """The first thing that is wrong, in the words of OpenAI's API."""
    first = error.errors(include_url=False)[0]
    param = _path(first["loc"])
    kind, given = first["type"], first.get("input")
    if kind == "missing":
        return RequestError(
            f"Missing required parameter: '{param}'.", param, "missing_required_parameter"
        )
    if kind == "value_error":
        return RequestError(f"{first['ctx']['error']}.", param or None, "invalid_value")
    if kind.endswith("_type") or kind == "int_from_float":
        wanted = NAMES[_TYPES[kind.removesuffix("_type").removesuffix("_from_float")]]
        return RequestError(
            f"Invalid type for '{param}': expected {wanted}, but got {json_type(given)} instead.",
            param,
            "invalid_type",
        )
    return RequestError(
        f"Invalid value for '{param}': {first['msg']}, got {given!r}.", param, "invalid_value"
    )


# Pydantic's word for a type -> the type.
_TYPES = {"string": str, "int": int, "float": float, "bool": bool, "dict": dict, "list": list}


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].role` for ("messages", 0, "role")."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path
