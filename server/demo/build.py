"""Makes the demo's batch file, requests.jsonl, from passages.toml.

Run as `python server/demo/build.py` after a change of either.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

MODEL = "SmolLM2-135M-Instruct"
MAX_ANSWER_TOKENS = 48


def batch_file() -> str:
    """The text of requests.jsonl: one request per question, first those that share a passage."""
    source = tomllib.loads((HERE / "passages.toml").read_text(encoding="utf-8"))
    return "".join(
        f"{json.dumps(request, ensure_ascii=False)}\n"
        for request in [*_about_passages(source), *_general(source["general"])]
    )


def _about_passages(source: dict[str, Any]) -> Iterator[dict[str, Any]]:
    system = {"role": "system", "content": source["system"].strip()}
    for passage in source["passages"]:
        source_note = f"(From {passage['title']} by {passage['author']}.)"
        opening = f"Text: {passage['text'].strip()}\n\n{source_note}"
        for number, question in enumerate(passage["questions"], start=1):
            user = {"role": "user", "content": f"{opening}\n\nQuestion: {question}"}
            yield _request(f"{passage['name']}-{number}", [system, user])


def _general(general: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for number, question in enumerate(general["questions"], start=1):
        yield _request(f"{general['name']}-{number}", [{"role": "user", "content": question}])


def _request(custom_id: str, messages: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": MODEL,
            "messages": messages,
            "temperature": 0,
            "max_tokens": MAX_ANSWER_TOKENS,
        },
    }


if __name__ == "__main__":
    (HERE / "requests.jsonl").write_text(batch_file(), encoding="utf-8")
