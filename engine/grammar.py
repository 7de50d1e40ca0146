"""Constraints on outputs, as llguidance's grammars over a model's tokens.

A grammar is a text. It is compiled once, however many sequences use it; each of these has a matcher
of its own, a copy that knows how far the sequence has come.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from trunkline.engine.json_grammar import prepared_schema
from trunkline.engine.requests.constraint import Constraint, ConstraintKind
from trunkline.engine.tokenizer import Tokenizer

# Compiled grammars that are kept, and refusals. One is some hundred kilobytes, seldom megabytes.
MAX_COMPILED = 256
# Errors without the state of the parser, which repeats the whole grammar.
LIMITS = LLParserLimits(verbose_errors=False)

Matcher = LLMatcher


class GrammarError(ValueError):
    """A constraint that cannot be taken; the message says why."""


class Grammars:
    """Compiled grammars of one model. Any thread may use it."""

    def __init__(self, tokenizer: Tokenizer, logits_vocab_size: int) -> None:
        """Nothing is built before the first grammar.

        Args:
            tokenizer: the model's.
            logits_vocab_size: logits of a row. Often more than the tokenizer has tokens; those
                without a token are never allowed.
        """
        self._tokenizer = tokenizer
        self.logits_vocab_size = logits_vocab_size
        self._num_bits = max(logits_vocab_size, tokenizer.vocab_size)
        # 32-bit words of a mask, which has a bit for every logit and every token.
        self.num_mask_words = -(-self._num_bits // 32)
        # Of the grammars used last, the latest at the end: as they are at their beginning, or what
        # is wrong with them.
        self._compiled: OrderedDict[str, LLMatcher | GrammarError] = OrderedDict()
        self._lock = threading.Lock()
        self._build_lock = threading.Lock()
        self._built: LLTokenizer | None = None

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end an output; a mask has them where the grammar is complete."""
        return self._tokenizer.eos_token_ids

    def of(self, constraint: Constraint) -> str:
        """The grammar of what `constraint` allows.

        Raises:
            GrammarError: llguidance does not take it.
        """
        grammar = grammar_text(constraint)
        self.check(grammar)
        return grammar

    def of_either(self, grammar: str, constraint: Constraint) -> str:
        """A grammar of what `grammar` or `constraint` allows.

        Raises:
            GrammarError: llguidance does not take it.
        """
        both = either(grammar, grammar_text(constraint))
        self.check(both)
        return both

    def check(self, grammar: str) -> None:
        """Compile `grammar`, a text of llguidance's (Lark, or JSON), unless it is compiled already.

        Raises:
            GrammarError: llguidance does not take it.
        """
        self._prototype(grammar)

    def matcher(self, grammar: str) -> Matcher:
        """A matcher of `grammar` at its beginning, the caller's own.

        Raises:
            GrammarError: llguidance does not take it.
        """
        return self._prototype(grammar).deep_copy()

    def _prototype(self, grammar: str) -> LLMatcher:
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
        if found is None:
            # Without the lock: it may take a second. Two threads may do it at once.
            found = self._compile(grammar)
            with self._lock:
                self._compiled[grammar] = found
                if len(self._compiled) > MAX_COMPILED:
                    self._compiled.popitem(last=False)
        if isinstance(found, GrammarError):
            raise GrammarError(str(found))
        return found

    def _compile(self, grammar: str) -> LLMatcher | GrammarError:
        try:
            vocabulary = self._vocabulary()
        except GrammarError as error:
            return error
        matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=LIMITS)
        if not matcher.is_error():
            # Builds the lexer's first states, which the copies then have.
            matcher.compute_bitmask()
        if matcher.is_error():
            return GrammarError(matcher.get_error().strip())
        return matcher

    def _vocabulary(self) -> LLTokenizer:
        with self._build_lock:
            if self._built is None:
                self._built = _llguidance_tokenizer(self._tokenizer, self._num_bits)
            return self._built


def grammar_text(constraint: Constraint) -> str:
    """The grammar of what `constraint` allows, unchecked.

    Raises:
        GrammarError: it cannot be written as a grammar.
    """
    value = constraint.value
    match constraint.kind:
        case ConstraintKind.JSON_SCHEMA:
            return _json_grammar(value)
        case ConstraintKind.JSON_OBJECT:
            return _json_grammar({"type": "object"})
        case ConstraintKind.REGEX:
            return str(LLMatcher.grammar_from_regex(_text(value, "a regular expression")))
        case ConstraintKind.CHOICE:
            if not value:
                raise GrammarError("there is nothing to choose from")
            texts = [json.dumps(text, ensure_ascii=False) for text in value]
            return f"start: {' | '.join(texts)}"
        case ConstraintKind.LARK:
            try:
                return str(any_to_lark(_text(value, "a grammar")))
            except GrammarError:
                raise
            except Exception as error:  # the converter raises errors of many kinds
                raise GrammarError(f"the grammar is neither Lark nor GBNF: {error}") from error


def either(*grammars: str) -> str:
    """A grammar of what any of `grammars` allows."""
    parts = []
    for i, grammar in enumerate(grammars):
        is_lark = not grammar.startswith("{")
        body = {"lark_grammar": grammar} if is_lark else json.loads(grammar)["grammars"][0]
        parts.append({**body, "name": f"choice_{i}"})
    start = "start: " + " | ".join(f"@{part['name']}" for part in parts)
    return json.dumps({"grammars": [{"lark_grammar": start}, *parts]})


def _json_grammar(schema: Any) -> str:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise GrammarError(f"the schema is not JSON: {error}") from error
    if isinstance(schema, bool):
        schema = {"allOf": [schema]}
    if not isinstance(schema, dict):
        raise GrammarError(f"a schema is an object, not {type(schema).__name__}")
    try:
        # Written here, because its order is the order of the properties.
        return str(LLMatcher.grammar_from_json_schema(json.dumps(prepared_schema(schema))))
    except (ValueError, TypeError, RecursionError) as error:
        raise GrammarError(str(error)) from error


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise GrammarError(f"{what} is a string, not {type(value).__name__}")
    return value


def _llguidance_tokenizer(tokenizer: Tokenizer, num_bits: int) -> LLTokenizer:
    eos = sorted(id_ for id_ in tokenizer.eos_token_ids if tokenizer.token_bytes(id_))
    if not eos:
        raise GrammarError("the model has no token that ends an output")
    try:
        return LLTokenizer(tokenizer.backend_json(), n_vocab=num_bits, eos_token=eos)
    except ValueError as error:
        raise GrammarError(f"the model's tokenizer cannot be constrained: {error}") from error
