"""Input files of any bytes: each line is a request or an error, and nothing is ever raised."""

from __future__ import annotations

import io
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trunkline.server.intake import read_input
from trunkline.store.batch_file import LineChecker, iterate_lines
from trunkline.store.records import LineError

CHAT = "/v1/chat/completions"
MODELS = ("tiny", "org/name")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
# Lone halves of surrogate pairs, which JSON can spell, are among these.
any_text = st.text(st.characters(exclude_categories=()), max_size=5)


def mostly(*usual: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(usual) | any_text | json_values


bodies = st.fixed_dictionaries(
    {},
    optional={
        "model": mostly("tiny", "tiny", "org/name"),
        "messages": mostly([]),
        "stream": mostly(False),
    },
)
records = st.fixed_dictionaries(
    {},
    optional={
        "custom_id": mostly("a", "b", "c"),
        "method": mostly("POST"),
        "url": mostly(CHAT),
        "body": bodies | json_values,
    },
)
lines = (
    st.binary(max_size=20)
    | records.map(lambda record: json.dumps(record).encode())
    | json_values.map(lambda value: json.dumps(value).encode())
)
breaks = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \t\n", b"\r"])
files = st.builds(
    lambda start, parts: start + b"".join(line + end for line, end in parts),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(st.tuples(lines, breaks), max_size=8),
)


def check_errors_can_be_told(errors: list[LineError]) -> None:
    for error in errors:
        text = json.dumps([error.code, error.message, error.param], ensure_ascii=False)
        assert text.encode().decode() == text
        assert "\0" not in error.message


@given(st.binary(max_size=200) | files)
def test_lines_are_where_they_are_said_to_be(raw: bytes) -> None:
    found = list(iterate_lines(io.BytesIO(raw)))
    place = 0
    for number, offset, line in found:
        assert offset >= place
        assert raw[offset : offset + len(line)] == line
        assert b"\n" not in line
        assert line.strip()
        assert number == raw[:offset].count(b"\n") + 1
        skipped = raw[place:offset]
        assert not skipped.removeprefix(b"\xef\xbb\xbf" if place == 0 else b"").strip()
        place = offset + len(line)
    rest = raw[place:]
    assert not rest.removeprefix(b"\xef\xbb\xbf" if place == 0 else b"").strip()


@given(files)
def test_each_line_is_a_request_or_an_error(raw: bytes) -> None:
    intake = read_input(io.BytesIO(raw), CHAT, MODELS, max_requests=1000)
    numbers = [number for number, _, _ in iterate_lines(io.BytesIO(raw))]
    check_errors_can_be_told(intake.errors)
    if not numbers:
        assert [error.code for error in intake.errors] == ["empty_file"]
    elif intake.errors:
        assert intake.requests == []
        about = [error.line for error in intake.errors]
        assert about == sorted(set(about))
        assert set(about) <= set(numbers)
    else:
        assert [request.line for request in intake.requests] == numbers
        assert intake.model in MODELS
        custom_ids = [request.custom_id for request in intake.requests]
        assert len(set(custom_ids)) == len(custom_ids)
        for request in intake.requests:
            # The engine reads these bytes again, and nothing else of the file.
            record = json.loads(raw[request.offset : request.offset + request.num_bytes])
            assert record["custom_id"] == request.custom_id
            assert record["url"] == CHAT
            assert record["body"]["model"] == intake.model
            assert record["body"]["messages"] is not None


@given(st.binary(max_size=60) | lines)
def test_a_checker_never_raises(raw: bytes) -> None:
    for endpoint in (CHAT, None):
        checker = LineChecker(endpoint, MODELS)
        checked = checker.check(7, 100, raw)
        assert (checked is None) == (len(checker.errors) == 1)
        check_errors_can_be_told(checker.errors)
        if checked is not None:
            assert (checked.line, checked.offset, checked.num_bytes) == (7, 100, len(raw))
            checked.custom_id.encode()


@given(st.lists(records, min_size=1, max_size=6), st.integers(1, 6))
def test_too_many_lines_are_counted_not_kept(made: list[Any], maximum: int) -> None:
    raw = b"".join(json.dumps(record).encode() + b"\n" for record in made)
    intake = read_input(io.BytesIO(raw), CHAT, MODELS, maximum)
    codes = [error.code for error in intake.errors]
    assert ("too_many_requests" in codes) == (len(made) > maximum)
    if len(made) > maximum:
        assert codes[0] == "too_many_requests"
        assert f"has {len(made)} requests" in intake.errors[0].message
        assert intake.requests == []
