"""From an input file to request rows, or to the list of all that is wrong with it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, BinaryIO

from trunkline.store.batch_file import EMPTY_FILE, LineChecker, iterate_lines
from trunkline.store.endpoints import PROMPT_FIELDS
from trunkline.store.records import LineError, NewRequest

BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Intake:
    """A validated input file: requests for one model, or errors."""

    requests: list[NewRequest]
    model: str | None
    num_estimated_tokens: int  # of all prompts
    errors: list[LineError]


def read_input(file: BinaryIO, endpoint: str, models: Collection[str], max_requests: int) -> Intake:
    """Validate every line of `file`.

    Args:
        endpoint: the batch's; every line's url must be the same.
        models: names that are served.
        max_requests: more lines than that are an error of the file.
    """
    checker = LineChecker(endpoint, models)
    requests: list[NewRequest] = []
    num_lines = num_estimated_tokens = 0
    for number, offset, raw in iterate_lines(file):
        num_lines += 1
        if num_lines > max_requests:
            continue
        line = checker.check(number, offset, raw)
        if line is not None:
            requests.append(NewRequest(line.line, line.custom_id, line.offset, line.num_bytes))
            prompt = [line.body.get(name) for name in PROMPT_FIELDS[endpoint]]
            num_estimated_tokens += estimated_tokens(prompt)
    errors = checker.errors
    if num_lines == 0:
        errors = [EMPTY_FILE]
    elif num_lines > max_requests:
        too_many = LineError(
            "too_many_requests",
            f"The input file has {num_lines} requests; a batch may have at most {max_requests}.",
            None,
            None,
        )
        errors = [too_many, *errors]
    return Intake([] if errors else requests, checker.model, num_estimated_tokens, errors)


def estimated_tokens(prompt: Any) -> int:
    """About how many tokens a prompt has: a quarter of its text's bytes, or the ids as given.

    The server has no tokenizer; an estimate is enough for a limit on what is queued.
    """
    num_bytes = num_ids = 0
    left = [prompt]
    while left:
        value = left.pop()
        if isinstance(value, str):
            num_bytes += len(value.encode(errors="surrogatepass"))
        elif isinstance(value, int):
            num_ids += 1
        elif isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return -(-num_bytes // BYTES_PER_TOKEN) + num_ids
