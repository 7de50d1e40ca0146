"""The lines of batch files: requests in, results out.

Every bad line is reported, once, with OpenAI's codes and messages; a file with a bad line is not
run at all.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import IO, Any

from trunkline.store.endpoints import ENDPOINTS, REQUIRED_FIELDS
from trunkline.store.json_types import json_type
from trunkline.store.records import LineError, Outcome

UTF8_BOM = b"\xef\xbb\xbf"

# An index entry of PostgreSQL holds 2704 bytes.
MAX_CUSTOM_ID_CHARACTERS = 512

# What JSON can spell, but neither UTF-8 nor PostgreSQL can hold.
UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def parse_json(raw: bytes) -> Any:
    """JSON as its standard has it; `json` alone would guess at other encodings, and take NaN.

    Raises:
        ValueError, RecursionError: it is not JSON, or nested too deeply.
    """
    return json.loads(raw.decode(), parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of a batch file, and where it is."""

    line: int  # from 1
    offset: int  # bytes from the start of the file
    num_bytes: int  # without the line break
    custom_id: str
    url: str
    body: dict[str, Any]


class BatchFileError(Exception):
    """A batch file that cannot be run, with all that is wrong with it."""

    def __init__(self, errors: list[LineError]) -> None:
        self.errors = errors
        super().__init__("\n".join(map(_sentence, errors)))


def _sentence(error: LineError) -> str:
    return error.message if error.line is None else f"line {error.line}: {error.message}"


class LineChecker:
    """Checks the lines of one file, which must agree with each other.

    Args:
        endpoint: the batch's; None means the first line's.
        models: names that are served; None means any, the same in every line.
    """

    def __init__(self, endpoint: str | None, models: Collection[str] | None) -> None:
        self._endpoint = endpoint
        self._models = models
        self._model: str | None = None
        self._seen: set[str] = set()
        self.errors: list[LineError] = []

    @property
    def model(self) -> str | None:
        """The model that the lines ask for."""
        return self._model

    def check(self, number: int, offset: int, raw: bytes) -> BatchLine | None:
        """The request of the line `raw`, or None when something is wrong with it."""
        try:
            return self._checked(number, offset, raw)
        except _BadLine as bad:
            self.errors.append(LineError(bad.code, bad.message, bad.param, number))
            return None

    def _checked(self, number: int, offset: int, raw: bytes) -> BatchLine:
        try:
            record = parse_json(raw)
        except (ValueError, RecursionError):
            raise _BadLine(
                "invalid_json_line", "This line is not parseable as valid JSON."
            ) from None
        if not isinstance(record, dict):
            raise _BadLine(
                "invalid_json_line", f"This line is {json_type(record)}; it must be a JSON object."
            )
        for name in ("custom_id", "method", "url", "body"):
            if record.get(name) is None:
                raise _BadLine(
                    "missing_required_parameter", f"Missing required parameter: '{name}'.", name
                )
        custom_id = self._custom_id(record["custom_id"])
        if record["method"] != "POST":
            raise _BadLine(
                "invalid_method",
                f"The method is {record['method']!r}; it must be 'POST'.",
                "method",
            )
        url = self._url(record["url"])
        body = record["body"]
        if not isinstance(body, dict):
            raise _wrong_type("body", "an object", body)
        self._check_body(url, body)
        return BatchLine(number, offset, len(raw), custom_id, url, body)

    def _custom_id(self, value: object) -> str:
        if not isinstance(value, str):
            raise _wrong_type("custom_id", "a string", value)
        if not value:
            raise _BadLine(
                "invalid_custom_id",
                "The custom_id is empty; it must identify the request.",
                "custom_id",
            )
        if len(value) > MAX_CUSTOM_ID_CHARACTERS:
            raise _BadLine(
                "invalid_custom_id",
                f"The custom_id has {len(value)} characters; at most {MAX_CUSTOM_ID_CHARACTERS} "
                "are allowed.",
                "custom_id",
            )
        if UNSTORABLE.search(value):
            raise _BadLine(
                "invalid_custom_id",
                "The custom_id holds a NUL character or half of a surrogate pair; neither is "
                "allowed.",
                "custom_id",
            )
        if value in self._seen:
            raise _BadLine(
                "duplicate_custom_id",
                f"The custom_id '{value}' for this request is a duplicate of another request. The "
                "custom_id parameter must be unique for each request in a batch.",
                "custom_id",
            )
        self._seen.add(value)
        return value

    def _url(self, value: object) -> str:
        if not isinstance(value, str):
            raise _wrong_type("url", "a string", value)
        if self._endpoint is None and value in ENDPOINTS:
            self._endpoint = value
        if value != self._endpoint:
            raise _BadLine(
                "invalid_url",
                "The URL provided for this request does not match the batch endpoint.",
                "url",
            )
        return value

    def _check_body(self, url: str, body: dict[str, Any]) -> None:
        if body.get("stream"):
            raise _BadLine(
                "streaming_unsupported",
                f"{_name(url)}: Streaming is not supported in the Batch API.",
                "body.stream",
            )
        model = body.get("model")
        if model is None:
            raise _BadLine("invalid_request", "Model parameter is required.", "body.model")
        if not isinstance(model, str):
            raise _wrong_type("body.model", "a string", model)
        if UNSTORABLE.search(model):
            raise _BadLine(
                "invalid_request",
                "The model's name holds a NUL character or half of a surrogate pair; neither is "
                "allowed.",
                "body.model",
            )
        if self._models is not None and model not in self._models:
            raise _BadLine(
                "model_not_found",
                f"The provided model '{model}' is not supported by the Batch API.",
                "body.model",
            )
        if self._model is None:
            self._model = model
        if model != self._model:
            raise _BadLine(
                "mismatched_model",
                f"The model '{model}' for this request does not match the rest of the batch. Each "
                "batch must contain requests for a single model.",
                "body.model",
            )
        name = REQUIRED_FIELDS[url]
        if name is not None and body.get(name) is None:
            raise _BadLine(
                "invalid_request", f"{name.capitalize()} parameter is required.", f"body.{name}"
            )


def _name(url: str) -> str:
    """What people call an endpoint: `Chat Completions` for `/v1/chat/completions`."""
    return url.removeprefix("/v1/").replace("/", " ").title()


class _BadLine(Exception):  # noqa: N818  # carries an error to `check`, and no further
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def _wrong_type(name: str, expected: str, given: object) -> _BadLine:
    return _BadLine(
        "invalid_type",
        f"Invalid type for '{name}': expected {expected}, but got {json_type(given)} instead.",
        name,
    )


def iterate_lines(file: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """The lines of `file` that are not blank: number from 1, offset, bytes without line break."""
    offset = 0
    for number, raw in enumerate(file, start=1):
        line, skipped = raw, 0
        if number == 1 and raw.startswith(UTF8_BOM):
            line, skipped = raw[len(UTF8_BOM) :], len(UTF8_BOM)
        line = line.rstrip(b"\r\n")
        if line.strip():
            yield number, offset + skipped, line
        offset += len(raw)


def read_batch_file(file: IO[bytes]) -> list[BatchLine]:
    """All requests of a batch file that asks for any one endpoint and model.

    Raises:
        BatchFileError: something is wrong with it.
    """
    checker = LineChecker(endpoint=None, models=None)
    lines = [line for item in iterate_lines(file) if (line := checker.check(*item)) is not None]
    if checker.errors:
        raise BatchFileError(checker.errors)
    if not lines:
        raise BatchFileError([EMPTY_FILE])
    return lines


EMPTY_FILE = LineError(
    "empty_file",
    "The input file is empty. Please ensure that the batch contains at least one request.",
    None,
    None,
)


def new_request_id() -> str:
    return f"batch_req_{secrets.token_hex(12)}"


def output_line(custom_id: str, outcome: Outcome, request_id: str | None = None) -> bytes:
    """One line of an output or error file, with its line break."""
    identity = request_id or new_request_id()
    if outcome.status_code is None:
        error = json.dumps({"code": outcome.error_code, "message": outcome.error_message})
        response = "null"
    else:
        error = "null"
        response = (
            f'{{"status_code":{outcome.status_code},"request_id":"{identity}",'
            f'"body":{outcome.body}}}'
        )
    return (
        f'{{"id":"{identity}","custom_id":{json.dumps(custom_id, ensure_ascii=False)},'
        f'"response":{response},"error":{error}}}\n'
    ).encode()
