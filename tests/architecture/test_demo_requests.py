"""The demo's batch is a batch that the server takes, and one that shares prefixes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

# Requests are grouped by how they begin; a passage is longer than this, a question shorter.
NUM_OPENING_CHARACTERS = 600


@pytest.fixture(scope="module")
def requests(root: Path) -> list[dict[str, Any]]:
    lines = (root / "server" / "demo" / "requests.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_requests_are_batch_requests(requests: list[dict[str, Any]]) -> None:
    assert len(requests) >= 64
    assert len({request["custom_id"] for request in requests}) == len(requests)
    assert {request["method"] for request in requests} == {"POST"}
    assert {request["url"] for request in requests} == {"/v1/chat/completions"}
    assert len({request["body"]["model"] for request in requests}) == 1


def test_answers_are_short_and_repeatable(requests: list[dict[str, Any]]) -> None:
    assert {request["body"]["temperature"] for request in requests} == {0}
    assert max(request["body"]["max_tokens"] for request in requests) <= 64


def test_most_requests_share_a_passage(requests: list[dict[str, Any]]) -> None:
    openings = Counter(
        json.dumps(request["body"]["messages"])[:NUM_OPENING_CHARACTERS] for request in requests
    )
    sizes = Counter(openings.values())
    assert sizes == {7: 8, 1: 8}
