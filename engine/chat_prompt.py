"""From the messages of a chat completion to the text that the model reads.

Chat templates differ in the roles they know, in how they want tools and the arguments of calls, and
in whether their models think. What a template lacks is put into words that it has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trunkline.engine.answers.format import ModelFamily, ToolFormat
from trunkline.engine.answers.tool_formats.hermes import BEGIN
from trunkline.engine.requests.chat import ChatCompletionRequest
from trunkline.engine.requests.errors import RequestError, unsupported_parameter
from trunkline.engine.requests.messages import answer_text, arguments_of, text_of
from trunkline.engine.requests.responses import ResponsesRequest
from trunkline.engine.requests.tools import FunctionTool, ToolMode
from trunkline.engine.template_names import TemplateNames, template_names
from trunkline.engine.tokenizer import ChatTemplateError, Tokenizer
from trunkline.engine.tool_prompt import json_of, with_tools_as_text

JsonObject = dict[str, Any]

# Fields of messages that are not for templates.
_NOT_SHOWN = frozenset({"prefix", "refusal", "audio", "function_call"})
# The ids of calls that the templates of Mistral's models take.
_MISTRAL_ID = re.compile(r"[a-zA-Z0-9]{9}")
# The variables by which templates let a model think or not.
_THINKING_SWITCHES = ("enable_thinking", "thinking")


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as text.

    Attributes:
        text: special tokens are in it.
        starts_thinking: the text has opened the model's reasoning, which the answer goes on with.
        may_think: the answer may contain reasoning.
    """

    text: str
    starts_thinking: bool
    may_think: bool


def chat_prompt(
    tokenizer: Tokenizer,
    family: ModelFamily,
    request: ChatCompletionRequest | ResponsesRequest,
) -> ChatPrompt:
    """The prompt of `request`.

    Args:
        tokenizer: the model's.
        family: the model's, from the tokenizer's template and vocabulary.
        request: whose messages and tools are shown.

    Raises:
        RequestError: the model has no chat template, its template refuses the messages, or it does
            not think as it is asked to.
    """
    if isinstance(request, ChatCompletionRequest):
        return _chat_prompt(tokenizer, family, request)
    try:
        return _chat_prompt(tokenizer, family, request.as_chat())
    except RequestError as error:
        raise request.in_own_words(error) from error


def _chat_prompt(
    tokenizer: Tokenizer, family: ModelFamily, request: ChatCompletionRequest
) -> ChatPrompt:
    template = tokenizer.chat_template or ""
    names = template_names(template)
    kwargs = {
        **_thinking_kwargs(request.reasoning_effort, names, family),
        **(request.chat_template_kwargs or {}),
    }
    messages = _normalised(request.messages, names)
    tools = _shown_tools(request)
    if family.tool_format in {ToolFormat.MISTRAL, ToolFormat.MISTRAL_NAMED}:
        _shorten_call_ids(messages)
    shows_calls = family.tool_format is not ToolFormat.HERMES or BEGIN in template
    if not (shows_calls and "tools" in names.variables):
        messages, tools = with_tools_as_text(messages, tools), []
    try:
        text = _rendered(tokenizer, request, messages, tools, kwargs)
    except ChatTemplateError as error:
        raise RequestError(str(error), "messages") from error
    except RecursionError:
        raise RequestError("The messages or tools are nested too deeply.", "messages") from None
    return _with_thinking(text, request, messages, family)


def _thinking_kwargs(
    effort: str | None, names: TemplateNames, family: ModelFamily
) -> Mapping[str, Any]:
    """The template's variables for a `reasoning_effort`."""
    if effort is None:
        return {}
    switches = [name for name in _THINKING_SWITCHES if name in names.variables]
    knows_effort = "reasoning_effort" in names.variables
    if switches or knows_effort:
        kwargs: JsonObject = dict.fromkeys(switches, effort != "none")
        return kwargs | ({"reasoning_effort": effort} if knows_effort else {})
    if effort == "none" and family.thinks:
        raise unsupported_parameter(
            "reasoning_effort", "This model always reasons, which 'none' would forbid."
        )
    if effort != "none" and not family.thinks:
        raise unsupported_parameter("reasoning_effort", "This model does not reason.")
    return {}


def _normalised(messages: list[JsonObject], names: TemplateNames) -> list[JsonObject]:
    """The messages as templates want them: content is text, arguments are objects."""
    knows_developer = "developer" in names.strings
    function_of: dict[str, str] = {}  # by the id of the call
    normalised = []
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        shown = {
            name: value
            for name, value in message.items()
            if name not in _NOT_SHOWN and value is not None
        }
        role = message["role"]
        if role == "developer" and not knows_developer:
            shown["role"] = "system"
        if role != "assistant":
            shown["content"] = text_of(message["content"], f"{path}.content")
        else:
            shown["content"] = answer_text(message, path)
            calls = [
                _with_object_arguments(call, f"{path}.tool_calls[{j}]")
                for j, call in enumerate(shown.pop("tool_calls", ()))
            ]
            if calls:
                shown["tool_calls"] = calls
            function_of |= {call["id"]: call["function"]["name"] for call in calls}
        if role == "tool" and message["tool_call_id"] in function_of:
            shown.setdefault("name", function_of[message["tool_call_id"]])
        normalised.append(shown)
    return normalised


def _with_object_arguments(call: JsonObject, path: str) -> JsonObject:
    function = call["function"]
    arguments = arguments_of(function["arguments"], f"{path}.function.arguments")
    # Templates print the whole function. Clients send it with their own fields in it.
    return {**call, "function": {"name": function["name"], "arguments": arguments}}


def _shown_tools(request: ChatCompletionRequest) -> list[JsonObject]:
    """The tools that the model gets to see: none, when it is not to call any."""
    use = request.tool_use
    if use is None or use.mode is ToolMode.NONE:
        return []
    return [_as_json(tool) for tool in use.tools]


def _as_json(tool: FunctionTool) -> JsonObject:
    described = {} if tool.description is None else {"description": tool.description}
    function = {"name": tool.name, **described, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _shorten_call_ids(messages: list[JsonObject]) -> None:
    """Replace ids that are not of the length that Mistral's templates insist on."""
    for message in messages:
        for call in message.get("tool_calls", ()):
            call["id"] = _short_id(call["id"])
        if message["role"] == "tool":
            message["tool_call_id"] = _short_id(message["tool_call_id"])


def _short_id(call_id: str) -> str:
    if _MISTRAL_ID.fullmatch(call_id):
        return call_id
    return hashlib.blake2b(call_id.encode(errors="surrogatepass"), digest_size=5).hexdigest()[:9]


def _rendered(
    tokenizer: Tokenizer,
    request: ChatCompletionRequest,
    messages: list[JsonObject],
    tools: list[JsonObject],
    kwargs: Mapping[str, Any],
) -> str:
    def render(shown: list[JsonObject]) -> str:
        return tokenizer.render_chat(
            shown,
            kwargs,
            tools=tools or None,
            continue_final_message=request.continue_final_message,
            add_generation_prompt=request.add_generation_prompt,
        )

    arguments = [
        call["function"]["arguments"]
        for message in messages
        for call in message.get("tool_calls", ())
    ]
    if not arguments:
        return render(messages)
    # Most templates turn arguments into JSON; some take them for JSON text, and fail or print
    # Python's form of an object.
    try:
        text = render(messages)
        if not any(str(each) in text and str(each) != json_of(each) for each in arguments):
            return text
    except ChatTemplateError as error:
        try:
            return render(_with_text_arguments(messages))
        except ChatTemplateError:
            raise error from None
    return render(_with_text_arguments(messages))


def _with_text_arguments(messages: list[JsonObject]) -> list[JsonObject]:
    return [
        {**message, "tool_calls": [_with_text_of_arguments(c) for c in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def _with_text_of_arguments(call: JsonObject) -> JsonObject:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json_of(function["arguments"])}}


def _with_thinking(
    text: str, request: ChatCompletionRequest, messages: list[JsonObject], family: ModelFamily
) -> ChatPrompt:
    tags = family.think_tags
    if tags is None:
        return ChatPrompt(text, starts_thinking=False, may_think=False)
    end = text.rstrip()
    begun = messages[-1]["content"] if request.continue_final_message else ""
    if begun.strip():
        starts_thinking = begun.rfind(tags.begin) > begun.rfind(tags.end)
        return ChatPrompt(text, starts_thinking, may_think=starts_thinking)
    starts_thinking = end.endswith(tags.begin)
    return ChatPrompt(text, starts_thinking, may_think=not end.endswith(tags.end))
