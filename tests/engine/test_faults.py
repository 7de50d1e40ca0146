"""A line that nothing was prepared for ends alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from trunkline.engine.faults import admit_together
from trunkline.engine.request import Line, Refusal, Request


def make_line(number: int) -> Line:
    return Line("batch_1", number, f"secret-{number}", "/v1/completions", {})


def admit(lines: list[Line]) -> Iterator[Request]:
    """Fails for line 5, as late as it can."""
    body: Any = None
    for line in lines:
        if line.line == 5:
            raise ZeroDivisionError(line.custom_id)
        yield Request(line, body, [], 0, 0)


@pytest.mark.parametrize("num_together", [1, 3, 100])
def test_one_line_fails_and_the_others_do_not(
    num_together: int, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [make_line(number) for number in range(1, 9)]
    admitted = list(admit_together(iter(lines), num_together, admit))
    assert [each.line for each in admitted] == lines
    (refusal,) = (each for each in admitted if isinstance(each, Refusal))
    assert refusal.line.line == 5
    assert refusal.error.status_code == 500
    assert refusal.error.as_body()["error"]["type"] == "server_error"
    assert "line 5 of batch_1: ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text


def test_no_lines() -> None:
    assert list(admit_together([], 4, admit)) == []
