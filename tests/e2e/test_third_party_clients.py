"""Clients that others have written for OpenAI's batches, unchanged, each in its own environment."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import python_with

pytestmark = [pytest.mark.e2e, pytest.mark.clients]

MODEL = "tiny"
RUN_SECONDS = 500

RunClient = Callable[..., dict[str, Any]]

LITELLM = """
import json, os, time
import litellm

place = {"custom_llm_provider": "openai", "api_base": os.environ["BASE_URL"], "api_key": "unused"}
with open(os.environ["INPUT"], "rb") as source:
    file = litellm.create_file(file=source, purpose="batch", **place)

def create():
    return litellm.create_batch(
        completion_window="24h",
        endpoint="/v1/chat/completions",
        input_file_id=file.id,
        metadata={"from": "litellm"},
        **place,
    )

batch = create()
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(0.1)
    batch = litellm.retrieve_batch(batch_id=batch.id, **place)
output = litellm.file_content(file_id=batch.output_file_id, **place)
second = litellm.cancel_batch(batch_id=create().id, **place)
try:
    litellm.retrieve_batch(batch_id="batch_none", **place)
    error = None
except Exception as raised:
    error = [type(raised).__name__, raised.status_code]
print(json.dumps({
    "file": file.model_dump(),
    "batch": batch.model_dump(),
    "output": output.content.decode(),
    "second": second.model_dump(),
    "listed": [each.id for each in litellm.list_batches(limit=10, **place).data],
    "files": [each.id for each in litellm.file_list(**place)],
    "deleted": litellm.file_delete(file_id=batch.output_file_id, **place).model_dump(),
    "error": error,
}))
"""

OPENAI_BATCH = """
import json, os, sys
from contextlib import redirect_stdout
from openai_batch import Batch
from openai_batch.providers import Provider

provider = Provider(name="own", base_url=os.environ["BASE_URL"], api_key="unused")
seen = []
with redirect_stdout(sys.stderr), Batch(
    submission_input_file="input.jsonl",
    output_file="output.jsonl",
    error_file="errors.jsonl",
    provider=provider,
) as batch:
    for i in range(3):
        batch.add_to_batch(
            model=os.environ["MODEL"],
            messages=[{"role": "user", "content": f"Number {i}."}],
            max_completion_tokens=4 if i else 100_000,
        )
    result, output, errors = batch.submit_wait_download(
        interval=0.1, status_callback=lambda batch: seen.append(batch.status)
    )
print(json.dumps({
    "batch": result.model_dump(),
    "seen": seen,
    "output": open(output).read(),
    "errors": open(errors).read(),
}))
"""


@pytest.fixture(scope="module")
def site(shared_installation: Any, tiny_model: Path) -> Any:
    """An installation that has an engine."""
    shared_installation.start(
        *("--model", str(tiny_model), "--served-model-name", MODEL),
        *("--kv-cache-bytes", str(16 * 1024 * 1024)),
    )
    return shared_installation


@pytest.fixture
def run_client(site: Any, tmp_path: Path) -> RunClient:
    """Runs a program with a client; what it prints."""

    def run(name: str, program: str) -> dict[str, Any]:
        source = tmp_path / "in.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in make_lines()))
        done = subprocess.run(
            [python_with(name), "-I", "-c", program],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            env={
                "PATH": os.environ["PATH"],
                "BASE_URL": f"http://127.0.0.1:{site.port}/v1",
                "INPUT": str(source),
                "MODEL": MODEL,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # not from the network
            },
        )
        assert done.returncode == 0, f"{done.stderr}\n{site.log}"
        printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return printed

    return run


def make_lines() -> list[dict[str, Any]]:
    return [
        {
            "custom_id": f"request-{i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": MODEL,
                "messages": [{"role": "user", "content": f"Number {i}."}],
                "max_tokens": 4,
            },
        }
        for i in range(3)
    ]


def results(text: str) -> dict[str, dict[str, Any]]:
    """The results in a file by custom_id; none may come twice."""
    lines = [json.loads(line) for line in text.splitlines()]
    by_id = {line["custom_id"]: line for line in lines}
    assert len(by_id) == len(lines)
    return by_id


def test_litellm(run_client: RunClient) -> None:
    seen = run_client("litellm", LITELLM)
    batch = seen["batch"]
    assert (batch["status"], batch["error_file_id"]) == ("completed", None)
    assert batch["metadata"] == {"from": "litellm"}
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert seen["file"]["filename"] == "in.jsonl"
    answered = results(seen["output"])
    assert answered.keys() == {line["custom_id"] for line in make_lines()}
    for result in answered.values():
        assert result["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
    assert seen["second"]["status"] in {"cancelling", "cancelled"}
    assert seen["listed"][:2] == [seen["second"]["id"], batch["id"]]
    assert {seen["file"]["id"], batch["output_file_id"]} <= set(seen["files"])
    assert seen["deleted"]["deleted"] is True
    assert seen["error"] == ["NotFoundError", 404]


def test_openai_batch(run_client: RunClient) -> None:
    # Version 0.3.4 reads its own input file after it has closed it.
    seen = run_client("openai-batch", OPENAI_BATCH)
    batch = seen["batch"]
    assert batch["status"] == seen["seen"][-1] == "completed"
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert results(seen["output"]).keys() == {"line-2", "line-3"}
    failed = results(seen["errors"])
    assert failed.keys() == {"line-1"}
    assert failed["line-1"]["response"]["status_code"] == 400
    assert "maximum context length" in failed["line-1"]["response"]["body"]["error"]["message"]
