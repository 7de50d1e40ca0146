"""The body of `/v1/responses`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self, get_args

from pydantic import Field, model_validator

from trunkline.engine.requests.body import Refused
from trunkline.engine.requests.chat import (
    ChatCompletionRequest,
    ReasoningEffort,
    TemplateKwargs,
)
from trunkline.engine.requests.checks import (
    as_array,
    as_object,
    as_string,
    nothing_else,
    one_of,
    optional_string,
    required,
)
from trunkline.engine.requests.constraint import (
    FORMAT_TYPES,
    Constraint,
    ConstraintKind,
    json_schema_format,
    structured_outputs,
)
from trunkline.engine.requests.errors import (
    RequestError,
    missing_parameter,
    not_among,
    unsupported_parameter,
)
from trunkline.engine.requests.response_items import messages_of
from trunkline.engine.requests.sampling import (
    ACCEPTED_IN_GENERATION,
    MAX_TOP_LOGPROBS,
    REFUSED_IN_GENERATION,
    SamplingFields,
)
from trunkline.engine.requests.tool_fields import TOOL_FIELDS, ToolShape, read_tool_use
from trunkline.engine.requests.tools import ToolUse

_LOGPROBS = "message.output_text.logprobs"
# Parts of answers that only tools of OpenAI's and images have; there are none to include.
_EMPTY_INCLUDES = frozenset(
    {
        *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
        *("message.input_image.image_url", "computer_call_output.output.image_url"),
        "code_interpreter_call.outputs",
    }
)


class ResponsesRequest(SamplingFields):
    """The body of a `/v1/responses` request."""

    # The conversation as chat completions have it.
    messages: list[dict[str, Any]]
    max_output_tokens: int | None = Field(None, ge=1)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    includes_logprobs: bool = False
    chat_template_kwargs: TemplateKwargs | None = None
    reasoning_effort: ReasoningEffort | None = None
    tool_use: ToolUse | None = None
    constraint: Constraint | None = None

    sources: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "messages": ("input", "instructions"),
        "includes_logprobs": ("include",),
        "reasoning_effort": ("reasoning",),
        "tool_use": TOOL_FIELDS,
        "constraint": ("text", "structured_outputs"),
    }
    accepted: ClassVar[frozenset[str]] = ACCEPTED_IN_GENERATION | {
        *("access_programs", "image", "max_tool_calls", "safety_identifier", "stream_options"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    }
    refused: ClassVar[Mapping[str, Refused]] = {
        **REFUSED_IN_GENERATION,
        "background": Refused((False,), "Put the request into a batch."),
        "background_options": Refused(reason="Put the request into a batch."),
        "context_management": Refused(([],), "Send an input that fits."),
        "conversation": Refused(reason="Put the earlier items into 'input'."),
        "moderation": Refused(),
        "previous_response_id": Refused(reason="Put the earlier items into 'input'."),
        "prompt": Refused(reason="Put its text into 'input'."),
        "truncation": Refused(("disabled",), "Send an input that fits."),
    }

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> dict[str, Any]:
        if "input" not in body:
            raise missing_parameter("input")
        instructions = body.get("instructions")
        if instructions is not None:
            as_string(instructions, "instructions")
        _check_cache_options(body.get("prompt_cache_options"))
        return {
            "messages": messages_of(body["input"], instructions),
            "includes_logprobs": _includes_logprobs(body.get("include")),
            "reasoning_effort": _reasoning_effort(body.get("reasoning")),
            "tool_use": read_tool_use(body, ToolShape.FLAT),
            "constraint": _constraint(body),
        }

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        self.check_min_tokens(self.output_limit)
        return self

    def as_chat(self) -> ChatCompletionRequest:
        """The chat completion whose answer is the response's."""
        num_top_logprobs = self.num_top_logprobs
        return ChatCompletionRequest(
            **{name: getattr(self, name) for name in SamplingFields.model_fields},
            messages=self.messages,
            max_completion_tokens=self.max_output_tokens,
            logprobs=num_top_logprobs is not None,
            top_logprobs=num_top_logprobs,
            reasoning_effort=self.reasoning_effort,
            chat_template_kwargs=self.chat_template_kwargs,
            tool_use=self.tool_use,
            constraint=self.constraint,
        )

    def in_own_words(self, error: RequestError) -> RequestError:
        """An error of `as_chat()`, with the names that the fields have here."""
        name = {"messages": "input", "reasoning_effort": "reasoning.effort"}.get(error.param or "")
        if name is None:
            return error
        message = error.message.replace(f"'{error.param}'", f"'{name}'")
        return RequestError(message, name, error.code)

    @property
    def n(self) -> int:
        """Answers to generate."""
        return 1

    @property
    def output_limit(self) -> int | None:
        """The most tokens to generate; None: as many as fit."""
        return self.max_output_tokens

    @property
    def num_top_logprobs(self) -> int | None:
        """Alternatives for each token; a number of them asks for log-probabilities by itself."""
        if self.top_logprobs is None and not self.includes_logprobs:
            return None
        return self.top_logprobs or 0


def _includes_logprobs(value: object) -> bool:
    included = [] if value is None else as_array(value, "include")
    for i, each in enumerate(included):
        name = as_string(each, f"include[{i}]")
        if name == "reasoning.encrypted_content":
            raise unsupported_parameter(f"include[{i}]", "Reasoning comes as text.")
        if name != _LOGPROBS and name not in _EMPTY_INCLUDES:
            raise not_among(f"include[{i}]", name, sorted({_LOGPROBS, *_EMPTY_INCLUDES}))
    return _LOGPROBS in included


def _reasoning_effort(value: object) -> str | None:
    if value is None:
        return None
    given = as_object(value, "reasoning")
    for name, allowed in (("context", ("auto", "current_turn")), ("mode", ("standard",))):
        if given.get(name) is not None and given[name] not in allowed:
            raise unsupported_parameter(f"reasoning.{name}")
    for name in ("summary", "generate_summary"):  # the reasoning itself is in the answer
        optional_string(given, name, "reasoning")
    known = ("effort", "summary", "generate_summary", "context", "mode")
    nothing_else(given, "reasoning", known)
    effort = given.get("effort")
    if effort is None:
        return None
    return one_of(effort, "reasoning.effort", get_args(ReasoningEffort))


def _constraint(body: Mapping[str, Any]) -> Constraint | None:
    found = [
        constraint
        for constraint in (
            _text_format(body.get("text")),
            structured_outputs(body.get("structured_outputs")),
        )
        if constraint is not None
    ]
    if len(found) > 1:
        raise RequestError(
            "Only one of 'text.format' and 'structured_outputs' may constrain the answer.",
            "structured_outputs",
            "invalid_value",
        )
    return found[0] if found else None


def _text_format(value: object) -> Constraint | None:
    if value is None:
        return None
    text = as_object(value, "text")
    if text.get("verbosity") not in (None, "medium"):
        raise unsupported_parameter(
            "text.verbosity", "Say in the input how long the answer may be."
        )
    nothing_else(text, "text", ("format", "verbosity"))
    if text.get("format") is None:
        return None
    path = "text.format"
    given = as_object(text["format"], path)
    kind = one_of(required(given, "type", path), f"{path}.type", FORMAT_TYPES)
    if kind == "json_schema":
        return json_schema_format(given, path)
    nothing_else(given, path, ("type",))
    return Constraint(ConstraintKind.JSON_OBJECT, None, path) if kind == "json_object" else None


def _check_cache_options(value: object) -> None:
    """Options of the cache change nothing, but for the one that asks for no answer."""
    if isinstance(value, dict) and value.get("prewarm"):
        raise unsupported_parameter("prompt_cache_options.prewarm")
