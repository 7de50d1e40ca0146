"""Answers to hundreds of JSON schemas validate, every one of them.

The schemas are random, or those of the official JSON Schema test suite that llguidance takes. All
are answered in one batch. An answer to one of the suite's that allow any length may have no end
within its tokens; it is no answer then. Most are the small model's: it means nothing by what it
says, so nothing but its constraint makes an answer valid.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.engine.tiny import CPU
from trunkline.engine.core import Engine
from trunkline.engine.grammar import GrammarError, Grammars
from trunkline.engine.kv_cache import allocate_kv_cache
from trunkline.engine.model.weights import LoadedModel
from trunkline.engine.request import Line, Request
from trunkline.engine.requests.constraint import Constraint, ConstraintKind
from trunkline.engine.runner import Runner
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import FinishReason, SamplingParams, Sequence
from trunkline.engine.tokenizer import Tokenizer

NUM_RANDOM = 200
SUITE = Path(__file__).parent / "json_schema_suite" / "draft2020-12.jsonl"
pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = SchedulerConfig(page_size=16, num_pages=2048, max_batch_tokens=512)
Schema = dict[str, Any]


class SchemaMaker:
    """Random schemas all of whose instances are short."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._definitions: dict[str, Schema] = {}

    def make(self) -> Schema:
        """A schema; most are of objects, as the API asks for."""
        self._definitions = {}
        root = self._object(0) if self._random.random() < 0.8 else self._any(0)
        return {**root, "$defs": self._definitions} if self._definitions else root

    def _any(self, depth: int) -> Schema:
        leaves: list[Callable[[], Schema]] = [
            self._string,
            self._pattern,
            self._format,
            self._integer,
            self._number,
            self._enum,
            self._const,
            self._nullable,
            lambda: {"type": "boolean"},
        ]
        branches: list[Callable[[], Schema]] = [
            lambda: self._object(depth + 1),
            lambda: self._array(depth + 1),
            lambda: self._any_of(depth + 1),
            lambda: self._reference(depth + 1),
        ]
        choices = leaves if depth >= 3 else leaves + 2 * branches
        return self._random.choice(choices)()

    def _object(self, depth: int) -> Schema:
        pool = ["name", "size", "of whom", "größe", 'a"b', "", "line\nbreak", "x", "tags", "id"]
        names = self._random.sample(pool, self._random.randint(0 if depth else 1, 4 - depth // 2))
        required = [name for name in names if self._random.random() < 0.6]
        self._random.shuffle(required)
        return {
            "type": "object",
            "title": "Something",
            "properties": {name: self._any(depth) for name in names},
            "required": required,
            "additionalProperties": False,
        }

    def _array(self, depth: int) -> Schema:
        least = self._random.randint(0, 2)
        if self._random.random() < 0.25:
            items = [self._any(depth) for _ in range(least + 1)]
            return {"type": "array", "prefixItems": items, "items": False, "minItems": least}
        most = least + self._random.randint(0, 1)
        return {"type": "array", "items": self._any(depth), "minItems": least, "maxItems": most}

    def _any_of(self, depth: int) -> Schema:
        return {"anyOf": [self._any(depth) for _ in range(self._random.randint(2, 3))]}

    def _reference(self, depth: int) -> Schema:
        if not self._definitions or self._random.random() < 0.6:
            self._definitions[f"d{len(self._definitions)}"] = {}  # holds the name
            name = f"d{len(self._definitions) - 1}"
            self._definitions[name] = self._any(max(depth, 2))
        name = self._random.choice(list(self._definitions))
        if not self._definitions[name]:  # being made: it would contain itself
            return {"type": "null"}
        return {"$ref": f"#/$defs/{name}"}

    def _string(self) -> Schema:
        least = self._random.choice([0, 0, 1, 3])
        return {
            "type": "string",
            "minLength": least,
            "maxLength": least + self._random.randint(0, 8),
            "description": "a short text",
        }

    def _pattern(self) -> Schema:
        patterns = ["^[A-Z]{2}-[0-9]{3}$", "^(red|green)[0-9]?$", "^[a-f0-9]{4,6}$", "^é?[^a]$"]
        return {"type": "string", "pattern": self._random.choice(patterns)}

    def _format(self) -> Schema:
        formats = ["date", "uuid", "ipv4", "ipv6", "date-time", "time", "hostname"]
        return {"type": "string", "format": self._random.choice(formats)}

    def _integer(self) -> Schema:
        low = self._random.randint(-1200, 1200)
        high = low + self._random.choice([1, 9, 40, 3000])
        kinds: list[Schema] = [
            {"minimum": low, "maximum": high},
            {"exclusiveMinimum": low, "maximum": high},
            {"minimum": low, "exclusiveMaximum": high},
            {"minimum": 0, "maximum": 10_000, "multipleOf": self._random.choice([3, 25, 7])},
        ]
        return {"type": "integer", **self._random.choice(kinds)}

    def _number(self) -> Schema:
        low = self._random.choice([-3.5, 0, 0.25, 17])
        return {"type": "number", "minimum": low, "maximum": low + 12.5, "multipleOf": 0.25}

    def _enum(self) -> Schema:
        values = ["a", "b c", "ü", 3, -1.5, True, None, [1, "x"], {"k": []}]
        return {"enum": self._random.sample(values, self._random.randint(1, 4))}

    def _const(self) -> Schema:
        return {"const": self._random.choice(["fixed", 7, None, {"a": [1, {"b": "c"}]}, [], ""])}

    def _nullable(self) -> Schema:
        schema = self._random.choice([self._string, self._integer, self._pattern])()
        return {**schema, "type": [schema["type"], "null"]}


@pytest.fixture(scope="module")
def tokenizer(small_folder: Path) -> Tokenizer:
    return Tokenizer(small_folder)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer, small: LoadedModel) -> Grammars:
    return Grammars(tokenizer, small.config.vocab_size)


def make_engine(model: LoadedModel, tokenizer: Tokenizer, grammars: Grammars) -> Engine:
    cache = allocate_kv_cache(
        model.config, model.decoder.dtype, CPU, CONFIG.num_pages, CONFIG.page_size
    )
    return Engine(CONFIG, Runner(model.decoder, cache), tokenizer, grammars)


def answer(engine: Engine, sequences: list[Sequence]) -> None:
    body: Any = None
    engine.add(
        Request(Line("batch", s.request_id, "x", "/v1/chat/completions", {}), body, [s], 1, 1)
        for s in sequences
    )
    while engine.has_work:
        engine.step()


def prompt_of(tokenizer: Tokenizer, question: str) -> np.ndarray[Any, np.dtype[np.int32]]:
    text = tokenizer.render_chat([{"role": "user", "content": question}])
    return tokenizer.encode_chat(text)


def suite_schemas(grammars: Grammars) -> list[Schema | bool]:
    """The official suite's schemas that llguidance takes."""
    found: list[Schema | bool] = []
    for line in SUITE.read_text(encoding="utf-8").splitlines():
        schema = json.loads(line)["schema"]
        try:
            grammars.of(Constraint(ConstraintKind.JSON_SCHEMA, schema, "response_format"))
        except GrammarError:
            continue
        found.append(schema)
    return found


def closing_biases(tokenizer: Tokenizer) -> list[tuple[int, float]]:
    """Biases that end values of any length, which many of the suite's schemas allow.

    Quotes that end a text go before brackets, of which a text can be full.
    """
    biases = {b'"': 30.0, b"]": 20.0, b"}": 20.0}
    closing = [(token, 100.0) for token in tokenizer.eos_token_ids]
    for token in range(tokenizer.vocab_size):
        text = tokenizer.token_bytes(token)
        if text[:1] in biases:
            closing.append((token, 36.0 if text in {b'"]', b'"}'} else biases[text[:1]]))
    return closing


def check_answers(
    model: LoadedModel,
    tokenizer: Tokenizer,
    grammars: Grammars,
    random_schemas: list[Schema],
    from_suite: list[Schema | bool],
) -> None:
    schemas = [*random_schemas, *from_suite]
    closing = tuple(closing_biases(tokenizer))
    prompt = prompt_of(tokenizer, "Give me an example, as JSON.")
    sequences = []
    for i, schema in enumerate(schemas):
        grammar = grammars.of(Constraint(ConstraintKind.JSON_SCHEMA, schema, "response_format"))
        sampling = SamplingParams(
            max_tokens=200,
            temperature=(0.0, 1.0)[i % 2],
            seed=i,
            stop_token_ids=tokenizer.eos_token_ids,
            logit_bias=() if i < len(random_schemas) else closing,
            grammar=grammar,
        )
        sequences.append(Sequence(i, 0, prompt, sampling))
    answer(make_engine(model, tokenizer, grammars), sequences)

    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    wrong, endless = [], []
    for i, (schema, sequence) in enumerate(zip(schemas, sequences, strict=True)):
        text = tokenizer.decode(sequence.output)
        assert sequence.failure is None
        if sequence.finish_reason is not FinishReason.STOP:
            endless.append((i, schema, text))
            continue
        value = json.loads(text)
        validator = jsonschema.Draft202012Validator(schema, format_checker=checker)
        if not validator.is_valid(value):
            wrong.append(("is invalid", schema, text))
        if "\n" in text:
            wrong.append(("has more than one line", schema, text))
    assert wrong == []
    assert [end for end in endless if end[0] < len(random_schemas)] == []
    assert len(endless) < 0.05 * len(from_suite)


# Which of the random schemas, and which of the suite's.
SAMPLE = (slice(0, 25), slice(3, None, 9))


@pytest.mark.parametrize(
    ("of_random", "of_suite"),
    [
        pytest.param(*SAMPLE, id="sample"),
        pytest.param(slice(None), slice(None), id="all", marks=pytest.mark.slow),
    ],
)
def test_every_answer_validates(
    small: LoadedModel, tokenizer: Tokenizer, grammars: Grammars, of_random: slice, of_suite: slice
) -> None:
    maker = SchemaMaker(seed=20)
    random_schemas = [maker.make() for _ in range(NUM_RANDOM)]
    from_suite = suite_schemas(grammars)
    assert len(from_suite) > 150
    check_answers(small, tokenizer, grammars, random_schemas[of_random], from_suite[of_suite])


@pytest.mark.slow
def test_the_default_models_answers_validate(
    smollm2: LoadedModel, tokenizer: Tokenizer, grammars: Grammars
) -> None:
    maker = SchemaMaker(seed=21)
    random_schemas = [maker.make() for _ in range(25)]
    check_answers(smollm2, tokenizer, grammars, random_schemas, suite_schemas(grammars)[::9])
