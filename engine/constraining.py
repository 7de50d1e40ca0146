"""Which grammar an answer is held to: that of its calls, of its form, or of either."""

from __future__ import annotations

from dataclasses import dataclass

from trunkline.engine.answers.format import ModelFamily, tool_grammar
from trunkline.engine.grammar import GrammarError, Grammars
from trunkline.engine.requests.chat import ChatCompletionRequest
from trunkline.engine.requests.completion import CompletionRequest
from trunkline.engine.requests.constraint import Constraint
from trunkline.engine.requests.errors import RequestError
from trunkline.engine.requests.tools import ToolMode, ToolUse


@dataclass(frozen=True)
class Rule:
    """A grammar, and from where on an answer follows it.

    Attributes:
        after_token: ends reasoning; None: the answer begins with what the grammar is of.
        unless_first_token: begins reasoning; an answer that begins otherwise has none. None: the
            prompt has begun it.
    """

    grammar: str
    after_token: int | None = None
    unless_first_token: int | None = None


def rule_of(
    body: ChatCompletionRequest | CompletionRequest,
    family: ModelFamily,
    grammars: Grammars,
    *,
    may_think: bool = False,
    starts_thinking: bool = False,
) -> Rule | None:
    """What answers to `body` are held to; None: to nothing.

    Args:
        may_think: an answer may begin with reasoning.
        starts_thinking: it does, and the prompt has opened it.

    Raises:
        RequestError: the grammar cannot be taken, or does not go with another field.
    """
    tool_use = body.tool_use if isinstance(body, ChatCompletionRequest) else None
    is_call_required = tool_use is not None and tool_use.mode is ToolMode.REQUIRED
    if not is_call_required and body.constraint is None:
        return None
    param = "tools" if is_call_required or body.constraint is None else body.constraint.param
    _check_fields(body, param)
    try:
        grammar = _grammar(tool_use, body.constraint, family, grammars)
    except GrammarError as error:
        raise RequestError(
            f"'{param}' cannot be used to constrain the answer: {error}.", param, "invalid_value"
        ) from error
    except RecursionError:
        raise RequestError(f"'{param}' is nested too deeply.", param, "invalid_value") from None
    if not may_think or family.think_tags is None:
        return Rule(grammar)
    begin, end = (
        family.vocabulary.get(tag) for tag in (family.think_tags.begin, family.think_tags.end)
    )
    if end is None or (begin is None and not starts_thinking):
        return Rule(grammar)  # where reasoning is cannot be told by single tokens
    return Rule(grammar, end, None if starts_thinking else begin)


def _grammar(
    tool_use: ToolUse | None,
    constraint: Constraint | None,
    family: ModelFamily,
    grammars: Grammars,
) -> str:
    if tool_use is not None and tool_use.mode is ToolMode.REQUIRED:
        grammar = tool_grammar(family, tool_use)
        grammars.check(grammar)
        return grammar
    assert constraint is not None
    if tool_use is not None and tool_use.mode is ToolMode.AUTO:
        return grammars.of_either(tool_grammar(family, tool_use), constraint)
    return grammars.of(constraint)


def _check_fields(body: ChatCompletionRequest | CompletionRequest, param: str) -> None:
    """Raise RequestError when a field makes no sense beside a grammar, which says where to end."""
    if isinstance(body, ChatCompletionRequest) and body.continue_final_message:
        raise RequestError(
            f"'continue_final_message' cannot be used with '{param}', which is of a whole answer.",
            "continue_final_message",
            "invalid_value",
        )
    if body.min_tokens:
        raise RequestError(
            f"'min_tokens' cannot be used with '{param}', which says where an answer ends.",
            "min_tokens",
            "invalid_value",
        )
