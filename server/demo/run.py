"""`trunkline demo`: the main job on this machine, as a user would do it with the official client.

A server and an engine are started as for real use, the bundled batch is uploaded, run and
downloaded, and everything is stopped again.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import openai
from openai.types import Batch
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from trunkline.server.settings import ServeSettings

# The first start fetches and converts the model.
START_SECONDS = 600.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.25
LOG_LINES = 20
SHOWN_ANSWERS = ("gettysburg-1", "pride-2", "alice-4", "moby-dick-1", "general-1")
ENDED = ("completed", "failed", "expired", "cancelled")


class DemoError(Exception):
    """The demo did not come to its end. The message says where."""


def run_demo(settings: ServeSettings) -> int:
    """Run the demo; the exit status."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="trunkline-demo-") as folder:
        log_path = Path(folder) / "serve.log"
        try:
            with _installation(settings, Path(folder), log_path, console) as base_url:
                _answer_sample(openai.OpenAI(base_url=base_url, api_key="unused"), console)
        except (DemoError, openai.OpenAIError, httpx.HTTPError) as error:
            console.print(f"[red]The demo failed:[/red] {error}", highlight=False)
            tail = log_path.read_text(errors="replace").splitlines()[-LOG_LINES:]
            console.print("The last lines of the server's log:", *tail, sep="\n", markup=False)
            return 1
    return 0


@contextmanager
def _installation(
    settings: ServeSettings, folder: Path, log_path: Path, console: Console
) -> Iterator[str]:
    """A running `trunkline serve` with a ready engine; its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "trunkline", "serve", "--port", str(port)),
        *("--data-dir", str(folder / "data")),
        *("--model", settings.model, "--device", settings.device),
    ]
    console.print("$ trunkline serve", style="bold")
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for_engine(process, port, log_path, console)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_engine(
    process: subprocess.Popen[bytes], port: int, log_path: Path, console: Console
) -> None:
    started = time.monotonic()
    with console.status("starting; the first time, the model is fetched and converted"):
        while time.monotonic() - started < START_SECONDS:
            if process.poll() is not None:
                raise DemoError(f"the server ended with status {process.returncode}")
            try:
                ready = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).json()
            except httpx.HTTPError:
                ready = {"engine_alive": False}
            if ready["engine_alive"]:
                engine = ready["engines"][0]
                console.print(
                    f"{engine['model']} is ready on {engine['device']} "
                    f"after {time.monotonic() - started:.1f} s",
                    highlight=False,
                )
                return
            time.sleep(POLL_SECONDS)
    raise DemoError(f"no engine was ready after {START_SECONDS:.0f} s; see {log_path}")


def _answer_sample(client: openai.OpenAI, console: Console) -> None:
    sample = files("trunkline.server.demo").joinpath("requests.jsonl").read_bytes()
    console.print("client.files.create(file=…, purpose='batch')", style="bold")
    uploaded = client.files.create(file=("requests.jsonl", sample), purpose="batch")
    console.print("client.batches.create(input_file_id=…)", style="bold")
    batch = client.batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
    )
    batch = _watch(client, batch, console)
    if batch.status != "completed" or batch.output_file_id is None:
        raise DemoError(f"the batch is {batch.status}: {batch.errors}")
    answers = client.files.content(batch.output_file_id).text
    _show_answers(sample.decode(), answers, console)
    _show_figures(batch, console)
    if batch.error_file_id is not None:
        raise DemoError(f"{batch.request_counts} requests; some failed")


def _watch(client: openai.OpenAI, batch: Batch, console: Console) -> Batch:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(batch.status, total=None)
        while batch.status not in ENDED:
            time.sleep(POLL_SECONDS)
            batch = client.batches.retrieve(batch.id)
            counts = batch.request_counts
            if counts is not None and counts.total:
                done = counts.completed + counts.failed
                progress.update(task, description=batch.status, total=counts.total, completed=done)
    return batch


def _show_answers(sample: str, answers: str, console: Console) -> None:
    questions = {}
    for line in sample.splitlines():
        request = json.loads(line)
        questions[request["custom_id"]] = request["body"]["messages"][-1]["content"]
    by_id: dict[str, dict[str, Any]] = {}
    for line in answers.splitlines():
        result = json.loads(line)
        by_id[result["custom_id"]] = result["response"]["body"]
    for custom_id in SHOWN_ANSWERS:
        question = questions[custom_id]
        # The passage before the question would fill the screen.
        shown = question.rpartition("\n\n")[2]
        text = Text()
        text.append(shown.strip() + "\n", style="dim")
        text.append(by_id[custom_id]["choices"][0]["message"]["content"].strip())
        console.print(
            Panel(text, title=custom_id, title_align="left", width=min(console.width, 88))
        )


def _show_figures(batch: Batch, console: Console) -> None:
    usage = batch.usage
    assert usage is not None
    assert batch.in_progress_at is not None
    assert batch.completed_at is not None
    seconds = max(batch.completed_at - batch.in_progress_at, 1)
    cached = usage.input_tokens_details.cached_tokens
    console.print(
        f"{usage.input_tokens + usage.output_tokens} tokens in {seconds} s: "
        f"{(usage.input_tokens + usage.output_tokens) / seconds:.0f} tokens/s, "
        f"{usage.output_tokens / seconds:.0f} of them generated\n"
        f"{cached / usage.input_tokens:.1%} of the prefill was saved: {cached} of "
        f"{usage.input_tokens} prompt tokens were shared",
        highlight=False,
    )
