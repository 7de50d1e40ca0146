"""What grammars allow, how often they are compiled, and what cannot be taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from trunkline.engine import grammar as grammar_module
from trunkline.engine.grammar import GrammarError, Grammars
from trunkline.engine.requests.constraint import Constraint, ConstraintKind
from trunkline.engine.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(smollm2_folder: Path) -> Tokenizer:
    return Tokenizer(smollm2_folder)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, tokenizer.vocab_size)


def of_kind(kind: ConstraintKind, value: Any = None) -> Constraint:
    return Constraint(kind, value, "response_format")


def schema(value: Any) -> Constraint:
    return of_kind(ConstraintKind.JSON_SCHEMA, value)


def takes(grammars: Grammars, tokenizer: Tokenizer, constraint: Constraint, text: str) -> bool:
    """Whether `text` is a complete output."""
    matcher = grammars.matcher(grammars.of(constraint))
    return matcher.consume_tokens(ids_of(tokenizer, text)) and matcher.is_accepting()


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(token) for token in tokenizer.encode_chat(text)]


def allowed(matcher: LLMatcher) -> set[int]:
    """The tokens that may come next."""
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


@pytest.mark.parametrize(
    ("constraint", "taken", "refused"),
    [
        (
            schema(PERSON),
            ['{"name": "Ann", "age": 3}', '{"name": "é \\n", "age": -10}'],
            [
                '{"name":"Ann","age":3}',
                '{"name": "Ann",\n "age": 3}',
                '{"age": 3, "name": "Ann"}',
                '{"name": "Ann"}',
                '{"name": "\\u0041nn", "age": 3}',
                '{"name": "Ann", "age": 3, "more": 1}',
                ' {"name": "Ann", "age": 3}',
                '{"name": "Ann", "age": 3}\n',
            ],
        ),
        (schema(json.dumps(PERSON)), ['{"name": "Ann", "age": 3}'], ["[]"]),
        (schema({"x-guidance": {"item_separator": ","}}), ["[1,2]"], ["[1, 2]"]),
        (schema({}), ["3", '"a"', "[]", '{"a": [1, null, {}]}'], ["", "a"]),
        (schema(True), ["null"], ["nul"]),
        (of_kind(ConstraintKind.JSON_OBJECT), ["{}", '{"a": {"b": [true]}}'], ["[]", "3", ""]),
        (of_kind(ConstraintKind.REGEX, "^[a-c]{2}$"), ["ab", "cc"], ["a", "abc", "^ab$"]),
        (
            of_kind(ConstraintKind.CHOICE, ("yes", "yes, no", 'a "b"\n', "😀/é")),
            ["yes", "yes, no", 'a "b"\n', "😀/é"],
            ["ye", "no", "", "yes "],
        ),
        (
            of_kind(ConstraintKind.LARK, 'start: "a" (" and " NAME)*\nNAME: /[b-d]+/'),
            ["a", "a and bcd and b"],
            ["a and", "b"],
        ),
        (of_kind(ConstraintKind.LARK, 'root ::= "x" | "y" root'), ["x", "yyx"], ["y", "xx"]),
    ],
)
def test_what_is_taken(
    grammars: Grammars,
    tokenizer: Tokenizer,
    constraint: Constraint,
    taken: list[str],
    refused: list[str],
) -> None:
    for text in taken:
        assert takes(grammars, tokenizer, constraint, text), text
    for text in refused:
        assert not takes(grammars, tokenizer, constraint, text), text


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (schema({"type": "strin"}), "Invalid type: strin"),
        (schema({"not": {"type": "integer"}}), '"not"'),
        (schema({"type": "string", "format": "int32"}), "Unknown format: int32"),
        (schema({"type": "integer", "minimum": 3, "maximum": 2}), "Unsatisfiable"),
        (schema(False), "false"),
        (schema("{"), "not JSON"),
        (schema([1]), "list"),
        (of_kind(ConstraintKind.REGEX, "(a"), "unclosed group"),
        (of_kind(ConstraintKind.REGEX, "(?=a)b"), "look-around"),
        (of_kind(ConstraintKind.REGEX, 3), "int"),
        (of_kind(ConstraintKind.CHOICE, ()), "nothing to choose from"),
        (of_kind(ConstraintKind.LARK, "start: b"), 'unknown name: "b"'),
        (of_kind(ConstraintKind.LARK, "root ::= ("), "neither Lark nor GBNF"),
    ],
)
def test_what_cannot_be_taken(grammars: Grammars, constraint: Constraint, reason: str) -> None:
    for _ in range(2):  # the second time from the cache
        with pytest.raises(GrammarError) as raised:
            grammars.of(constraint)
        assert reason in str(raised.value)
        assert len(str(raised.value)) < 500


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The grammars that have been compiled, as they are."""
    found: list[str] = []
    compile_one = Grammars._compile

    def record(self: Grammars, grammar: str) -> LLMatcher | GrammarError:
        found.append(grammar)
        return compile_one(self, grammar)

    monkeypatch.setattr(Grammars, "_compile", record)
    return found


def test_one_schema_in_many_lines_is_compiled_once(
    tokenizer: Tokenizer, compiled: list[str]
) -> None:
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    text = json.dumps(PERSON)
    found = {grammars.of(schema(json.loads(text))) for _ in range(50_000)}
    assert compiled == list(found)
    matchers = [grammars.matcher(compiled[0]) for _ in range(100)]
    assert len(compiled) == 1
    assert len({id(matcher) for matcher in matchers}) == 100


def test_the_grammars_used_last_are_kept(
    tokenizer: Tokenizer, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_module, "MAX_COMPILED", 2)
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    for word in "ABACABCA":
        grammars.check(f'start: "{word}"')
    assert [text[-2] for text in compiled] == ["A", "B", "C", "B", "C", "A"]


def test_matchers_are_independent(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = grammars.of(of_kind(ConstraintKind.CHOICE, ("north", "south")))
    first, second = grammars.matcher(grammar), grammars.matcher(grammar)
    assert first.consume_tokens(ids_of(tokenizer, "north"))
    assert first.is_stopped()
    assert not second.is_stopped()
    assert second.consume_tokens(ids_of(tokenizer, "south"))


def test_every_end_of_sequence_token_ends_a_complete_output(
    smollm2_folder: Path, tmp_path: Path
) -> None:
    for path in smollm2_folder.glob("*token*.json"):
        shutil.copy(path, tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 2, 60000]}')
    tokenizer = Tokenizer(tmp_path)
    grammars = Grammars(tokenizer, 49_152)
    matcher = grammars.matcher(grammars.of(of_kind(ConstraintKind.REGEX, "ab")))
    assert not {0, 2} & allowed(matcher)
    assert matcher.consume_tokens(ids_of(tokenizer, "ab"))
    assert allowed(matcher) == {0, 2}


@pytest.mark.parametrize("logits_vocab_size", [49_152 + 77, 49_152 - 100])
def test_logits_and_tokens_of_different_numbers(
    tokenizer: Tokenizer, logits_vocab_size: int
) -> None:
    grammars = Grammars(tokenizer, logits_vocab_size)
    assert 32 * grammars.num_mask_words >= max(logits_vocab_size, tokenizer.vocab_size)
    matcher = grammars.matcher(grammars.of(of_kind(ConstraintKind.REGEX, "(?s:.*)")))
    found = allowed(matcher)
    assert len(found) > 40_000
    assert max(found) < tokenizer.vocab_size


def test_a_vocabulary_of_bytes(byte_folder: Path) -> None:
    tokenizer = Tokenizer(byte_folder)
    grammars = Grammars(tokenizer, 260)
    constraint = of_kind(ConstraintKind.CHOICE, ("é", "ab"))
    assert takes(grammars, tokenizer, constraint, "é")
    assert not takes(grammars, tokenizer, constraint, "è")


def test_a_vocabulary_with_marked_spaces_and_byte_fallback(tmp_path: Path) -> None:
    """As SentencePiece models have it, Llama 2 and Mistral among them."""
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    tokens += ["\u2581", "a", "b", "\u2581a", "\u2581b", "{", "}", '"', ":", "1"]
    merges = [("\u2581", "a"), ("\u2581", "b")]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    backend = Backend(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    constraint = of_kind(ConstraintKind.REGEX, "a b|é")
    assert takes(grammars, tokenizer, constraint, "a b")
    assert takes(grammars, tokenizer, constraint, "é")
    matcher = grammars.matcher(grammars.of(constraint))
    assert allowed(matcher) == {
        vocabulary["a"],
        vocabulary["<0x61>"],
        vocabulary["<0xC3>"],
    }
    assert takes(grammars, tokenizer, schema({"type": "object"}), '{"a": 1}')


def test_a_model_without_an_end(byte_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(byte_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(GrammarError, match="no token that ends an output"):
        Grammars(Tokenizer(tmp_path), 260).check('start: "a"')


@pytest.mark.parametrize(
    "constraint",
    [
        schema(PERSON),
        of_kind(ConstraintKind.REGEX, "[{]no[}]"),
        of_kind(ConstraintKind.LARK, '%llguidance {}\nstart: "{no" X\nX: "}"'),
    ],
)
def test_either_of_two_grammars(
    grammars: Grammars, tokenizer: Tokenizer, constraint: Constraint
) -> None:
    call = 'start: "<tool_call>" inner\ninner: %json {"type": "integer"}'
    grammar = grammars.of_either(call, constraint)
    of_constraint = '{"name": "Ann", "age": 3}' if constraint.value is PERSON else "{no}"
    for text, is_taken in (("<tool_call>12", True), (of_constraint, True), ("<tool_call>{", False)):
        matcher = grammars.matcher(grammar)
        found = matcher.consume_tokens(ids_of(tokenizer, text)) and matcher.is_accepting()
        assert found == is_taken, text


@pytest.mark.parametrize(
    ("form", "taken", "refused"),
    [
        (
            "date",
            ["2020-02-29", "2000-02-29", "1999-12-31"],
            ["2021-02-29", "1900-02-29", "0000-01-01"],
        ),
        ("time", ["23:59:59Z", "00:00:00.5+02:00"], ["10:10:60Z", "10:10:10"]),
        ("date-time", ["2020-02-29T10:10:59Z"], ["2021-02-29T10:10:59Z", "2020-02-29T10:10:60Z"]),
    ],
)
def test_dates_and_times_that_do_not_exist(
    grammars: Grammars, tokenizer: Tokenizer, form: str, taken: list[str], refused: list[str]
) -> None:
    inner = {"type": ["string", "null"], "format": form}
    outer = {"type": "object", "properties": {"format": inner}, "required": ["format"]}
    for text in taken:
        assert takes(grammars, tokenizer, schema(inner), json.dumps(text)), text
        assert takes(grammars, tokenizer, schema(outer), json.dumps({"format": text})), text
    for text in refused:
        assert not takes(grammars, tokenizer, schema(inner), json.dumps(text)), text
        assert not takes(grammars, tokenizer, schema(outer), json.dumps({"format": text})), text
    assert takes(grammars, tokenizer, schema(inner), "null")


def test_the_official_suite_refutes_no_grammar(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """No grammar takes what its schema does not allow, and most take what it does.

    The rest of what is allowed has its properties in another order than the schema.
    """
    path = Path(__file__).parent / "json_schema_suite" / "draft2020-12.jsonl"
    num_taken, outcomes = 0, {(valid, taken): 0 for valid in (0, 1) for taken in (0, 1)}
    wrong = []
    for line in path.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        try:
            grammar = grammars.of(schema(case["schema"]))
        except GrammarError:
            continue
        num_taken += 1
        for test in case["tests"]:
            matcher = grammars.matcher(grammar)
            ids = ids_of(tokenizer, json.dumps(test["data"], ensure_ascii=False))
            is_taken = matcher.consume_tokens(ids) and matcher.is_accepting()
            outcomes[test["valid"], is_taken] += 1
            if is_taken and not test["valid"]:
                wrong.append((case["description"], test["data"]))
    assert wrong == []
    assert num_taken > 150
    assert outcomes[True, True] > 10 * outcomes[True, False]
