"""The body of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from trunkline.engine.requests.body import Refused
from trunkline.engine.requests.constraint import (
    STRUCTURED_FIELDS,
    Constraint,
    read_constraint,
)
from trunkline.engine.requests.errors import RequestError, unsupported_parameter
from trunkline.engine.requests.messages import check_messages
from trunkline.engine.requests.sampling import (
    ACCEPTED_IN_GENERATION,
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    REFUSED_IN_GENERATION,
    SamplingFields,
    include_usage,
)
from trunkline.engine.requests.tool_fields import TOOL_FIELDS, ToolShape, read_tool_use
from trunkline.engine.requests.tools import ToolUse

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

# What the caller of a chat template says itself.
_RESERVED_TEMPLATE_KWARGS = frozenset(
    {
        *("chat_template", "tools", "documents", "conversation", "messages", "tokenize"),
        *("add_generation_prompt", "continue_final_message", "padding", "truncation"),
        *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "sanitize_control_tokens"),
    }
)


def _check_template_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name in kwargs:
        if name in _RESERVED_TEMPLATE_KWARGS:
            raise unsupported_parameter(f"chat_template_kwargs.{name}")
    return kwargs


TemplateKwargs = Annotated[dict[str, Any], AfterValidator(_check_template_kwargs)]


class ChatCompletionRequest(SamplingFields):
    """The body of a `/v1/chat/completions` request."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1), AfterValidator(check_messages)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    reasoning_effort: ReasoningEffort | None = None
    include_reasoning: bool = True
    add_generation_prompt: bool = True
    # The last message is the beginning of the answer: by this field, or by the message's `prefix`.
    continue_final_message: bool = False
    chat_template_kwargs: TemplateKwargs | None = None
    tool_use: ToolUse | None = None
    constraint: Constraint | None = None
    include_usage: bool = False

    sources: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "continue_final_message": ("continue_final_message",),
        "tool_use": TOOL_FIELDS,
        "constraint": ("response_format", *STRUCTURED_FIELDS),
        "include_usage": ("stream_options",),
    }
    accepted: ClassVar[frozenset[str]] = ACCEPTED_IN_GENERATION | {
        *("prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("safety_identifier", "guided_decoding_backend"),
    }
    refused: ClassVar[Mapping[str, Refused]] = {
        **REFUSED_IN_GENERATION,
        "audio": Refused(reason="Answers are text."),
        "functions": Refused(([],), "Use 'tools'."),
        "function_call": Refused(("none", "auto"), "Use 'tool_choice'."),
        "modalities": Refused((["text"],), "Answers are text."),
        "moderation": Refused(),
        "verbosity": Refused(("medium",), "Say in the messages how long the answer may be."),
        "web_search_options": Refused(),
        "add_special_tokens": Refused((False,), "The chat template puts them."),
        "chat_template": Refused(reason="The model's own is used."),
        "documents": Refused(([],), "Put them into the messages."),
        "echo": Refused((False,)),
        "prompt_logprobs": Refused(reason="Use '/v1/completions'."),
    }

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "continue_final_message": _has_prefix(body)
            or body.get("continue_final_message", False),
            "tool_use": read_tool_use(body, ToolShape.NESTED),
            "constraint": read_constraint(body),
            "include_usage": include_usage(body),
        }

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(
                "'top_logprobs' is given, so 'logprobs' must be true.",
                "top_logprobs",
                "invalid_value",
            )
        self.check_min_tokens(self.output_limit)
        last = len(self.messages) - 1
        final = self.messages[last]
        if self.continue_final_message and final["role"] != "assistant":
            raise RequestError(
                "'continue_final_message' needs an assistant's message at the end, got role "
                f"'{final['role']}'.",
                f"messages[{last}].role",
                "invalid_value",
            )
        if self.continue_final_message and final.get("tool_calls"):
            raise RequestError(
                "A message with 'tool_calls' cannot be continued.",
                f"messages[{last}].tool_calls",
                "invalid_value",
            )
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


def _has_prefix(body: Mapping[str, Any]) -> bool:
    """Whether the last message says that the answer goes on from it."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return False  # the check of the messages says so
    return messages[-1].get("prefix") is True
