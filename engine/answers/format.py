"""How a model's answers are to be read, and which answers it is to be held to.

A model's chat template shows it how to write calls and reasoning; the families of models differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from trunkline.engine.answers.pieces import AnswerParser, Content, Piece
from trunkline.engine.answers.reasoning import (
    BRACKETED_THINK,
    THINK,
    ReasoningParser,
    ThinkTags,
)
from trunkline.engine.answers.tool_formats.hermes import BEGIN, HermesParser, hermes_rules
from trunkline.engine.answers.tool_formats.lark import grammar
from trunkline.engine.answers.tool_formats.llama3 import PYTHON_TAG, Llama3Parser, llama3_rules
from trunkline.engine.answers.tool_formats.mistral import (
    ARGS,
    TOOL_CALLS,
    MistralParser,
    mistral_list_rules,
    mistral_named_rules,
)
from trunkline.engine.requests.tools import ToolMode, ToolUse


class ToolFormat(StrEnum):
    """How calls are written; see the module of each format."""

    HERMES = "hermes"
    LLAMA3 = "llama3"
    MISTRAL = "mistral"  # all calls in one list
    MISTRAL_NAMED = "mistral_named"  # each call behind the function's name


@dataclass(frozen=True)
class _Notation:
    """What there is of a format."""

    marker: str  # of calls
    parser: type[HermesParser | Llama3Parser | MistralParser]
    rules: Callable[..., list[str]]


_NOTATIONS = {
    ToolFormat.HERMES: _Notation(BEGIN, HermesParser, hermes_rules),
    ToolFormat.LLAMA3: _Notation(PYTHON_TAG, Llama3Parser, llama3_rules),
    ToolFormat.MISTRAL: _Notation(TOOL_CALLS, MistralParser, mistral_list_rules),
    ToolFormat.MISTRAL_NAMED: _Notation(TOOL_CALLS, MistralParser, mistral_named_rules),
}


@dataclass(frozen=True)
class ModelFamily:
    """What the answers of a model look like.

    Attributes:
        tool_format: how it writes calls.
        think_tags: what stands around its reasoning; None when it does not think.
        vocabulary: the ids of its tokens by name.
    """

    tool_format: ToolFormat
    think_tags: ThinkTags | None = None
    vocabulary: Mapping[str, int] = field(default_factory=dict, repr=False, hash=False)

    @property
    def thinks(self) -> bool:
        return self.think_tags is not None


def model_family(chat_template: str | None, vocabulary: Mapping[str, int]) -> ModelFamily:
    """The family of a model, from what its chat template writes.

    A template that shows no calls is Hermes: so is the system prompt that stands in for it.
    """
    template = chat_template or ""
    return ModelFamily(_tool_format(template, vocabulary), _think_tags(template), vocabulary)


def _tool_format(template: str, vocabulary: Mapping[str, int]) -> ToolFormat:
    if TOOL_CALLS in template:
        return ToolFormat.MISTRAL_NAMED if ARGS in template else ToolFormat.MISTRAL
    if BEGIN in template:
        return ToolFormat.HERMES
    # Llama 3.2's template has the format of 3.1's, but not the token.
    if PYTHON_TAG in template or ('"parameters": ' in template and PYTHON_TAG in vocabulary):
        return ToolFormat.LLAMA3
    return ToolFormat.HERMES


def _think_tags(template: str) -> ThinkTags | None:
    """The tags in the template: it takes them out of past answers, or opens them in the prompt."""
    tags = (THINK, BRACKETED_THINK)
    return next((pair for pair in tags if pair.begin in template or pair.end in template), None)


@dataclass(frozen=True)
class AnswerFormat:
    """How one answer is to be read.

    Attributes:
        tool_format: how calls are written; None: there are none, and what looks like one is text.
        names: of the functions that may be called.
        parallel: whether more calls than one are wanted.
        think_tags: what stands around reasoning; None: there is none.
        starts_thinking: the prompt has opened the reasoning.
        has_marker_tokens: the marker of calls is a token of the vocabulary.
    """

    tool_format: ToolFormat | None = None
    names: frozenset[str] = frozenset()
    parallel: bool = True
    think_tags: ThinkTags | None = None
    starts_thinking: bool = False
    has_marker_tokens: bool = False

    @property
    def keeps_special_tokens(self) -> bool:
        """Whether markers may be special tokens, which decoding leaves out unless told.

        Hermes' tags are so only in some vocabularies that have them.
        """
        has_marked_calls = self.tool_format not in (None, ToolFormat.HERMES)
        return has_marked_calls or self.has_marker_tokens or self.think_tags == BRACKETED_THINK

    def parser(self) -> AnswerParser:
        """A parser of an answer's text."""
        parser: AnswerParser = _PlainText()
        if self.tool_format is not None:
            parser = _NOTATIONS[self.tool_format].parser(self.names, parallel=self.parallel)
        if self.think_tags is None:
            return parser
        return ReasoningParser(parser, self.think_tags, starts_thinking=self.starts_thinking)


def answer_format(
    family: ModelFamily, tool_use: ToolUse | None, starts_thinking: bool
) -> AnswerFormat:
    """How the answer to a request is to be read."""
    if tool_use is None or tool_use.mode is ToolMode.NONE:
        return AnswerFormat(think_tags=family.think_tags, starts_thinking=starts_thinking)
    return AnswerFormat(
        tool_format=family.tool_format,
        names=frozenset(tool.name for tool in tool_use.callable),
        parallel=tool_use.parallel,
        think_tags=family.think_tags,
        starts_thinking=starts_thinking,
        has_marker_tokens=_NOTATIONS[family.tool_format].marker in family.vocabulary,
    )


def tool_grammar(family: ModelFamily, tool_use: ToolUse) -> str:
    """A llguidance Lark grammar of an answer that is nothing but calls of the callable tools.

    It has to be met from the end of the reasoning on, where there is any.

    Raises:
        ValueError: there is no tool that may be called.
    """
    if not tool_use.callable:
        raise ValueError("a call is required, but there is no tool that may be called")
    rules = _NOTATIONS[family.tool_format].rules
    newlines = r"/\n{1,2}/? " if family.thinks else ""  # as models write them behind reasoning
    return grammar(
        [
            f"start: {newlines}calls",
            *rules(tool_use.callable, family.vocabulary, parallel=tool_use.parallel),
        ]
    )


class _PlainText:
    """An answer without calls; an `AnswerParser`."""

    def push(self, text: str) -> list[Piece]:
        return [Content(text)] if text else []

    def finish(self) -> list[Piece]:
        return []
