"""The small commands, servers and keys, and the process itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.live_server import HANG_SECONDS
from tests.server.stores import on_sqlite
from trunkline.__main__ import COMMANDS
from trunkline.server.client.commands import app
from trunkline.server.client.settings import ClientSettings, find_key
from trunkline.store.projects import ApiKeys, Projects

# What a client sees of a server is the same on every database.
pytestmark = pytest.mark.parametrize("server", ["sqlite"], indirect=True)


def test_pause_resume_and_retry(
    run: Any, complaint: Any, server: Any, engine: Any, batch_file: Path
) -> None:
    batch = server.create(batch_file.read_bytes())
    server.wait(batch.id, "in_progress")
    paused = run("pause", batch.id, url=server.base_url)
    assert paused.stdout == f"{batch.id} is in_progress (paused)\n"
    assert engine.work.claim(engine.model, [engine.model], 0.0, 60) is None
    resumed = run("resume", batch.id, url=server.base_url)
    assert resumed.stdout == f"{batch.id} is in_progress\n"
    engine.complete(engine.claim(), failing={"request-3"})
    server.wait_for_end(batch.id)
    again = run("retry", batch.id, url=server.base_url)
    assert again.exit_code == 0
    engine.complete(engine.claim())
    assert server.wait_for_end(again.stdout.strip()).request_counts.total == 1
    late = run("pause", batch.id, url=server.base_url)
    assert late.exit_code == 3
    assert "Cannot pause a batch with status 'completed'" in complaint(late)


def test_no_server(
    run: Any,
    complaint: Any,
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        result = run("status", url=url)
    assert result.exit_code == 3
    assert complaint(result).startswith(f"there is no server at {url} (")
    assert "--base-url or TRUNKLINE_BASE_URL" in complaint(result)


def test_not_this_kind_of_server(run: Any, complaint: Any, proxy: Any, server: Any) -> None:
    with proxy(server, lambda *_: 404) as between:
        result = run("status", url=between.url)
    assert result.exit_code == 3
    assert "answered 404 Not Found to GET /v1/batches" in complaint(result)
    result = run("status", url=f"{server.base_url}/healthz")
    assert result.exit_code == 3


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:b", "http://u:p@a"]
)
def test_wrong_urls(run: Any, complaint: Any, url: str) -> None:
    result = run("status", url=url)
    assert result.exit_code == 2
    assert f"--base-url is '{url}'" in complaint(result)


@pytest.mark.parametrize("command", ["status", "fetch", "cancel", "pause", "resume", "retry"])
def test_no_such_batch(run: Any, complaint: Any, server: Any, tmp_path: Path, command: str) -> None:
    more = ("-o", tmp_path / "out.jsonl") if command == "fetch" else ()
    result = run(command, "batch_none", *more, url=server.base_url)
    assert result.exit_code == 3
    assert "batch_none" in complaint(result)
    assert "`trunkline status` lists" in complaint(result)
    result = run(command, "../files", *more, url=server.base_url)
    assert result.exit_code == 2
    assert "'../files' is no id of a batch" in complaint(result)


@on_sqlite
def test_keys(
    run: Any, complaint: Any, make_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make_server()
    project = Projects(own.database).ensure("team", 0)
    key = ApiKeys(own.database).create(project.id, "", 0)[1]
    without = run("status", url=own.base_url)
    assert without.exit_code == 3
    assert f"{own.base_url} refused a request without a key; give" in complaint(without)
    wrong = run("status", "--api-key", "tl-wrong-key-of-mine", url=own.base_url)
    assert wrong.exit_code == 3
    assert "refused the key it was given" in complaint(wrong)
    assert "wrong-key" not in wrong.output
    assert run("status", "--api-key", key, url=own.base_url).exit_code == 0
    monkeypatch.setenv("TRUNKLINE_API_KEY", key)
    assert run("status", url=own.base_url).exit_code == 0


@pytest.mark.parametrize(
    ("own_key", "openai_url", "sent"),
    [
        ("tl-1", "http://there:80/v1", "tl-1"),
        ("", "http://there:80/v1", "sk-1"),
        ("", "http://THERE/v1/", "sk-1"),
        ("", "https://there/v1", None),
        ("", "http://there:8080/v1", None),
        ("", "http://there.example/v1", None),
        ("", "http://there:x", None),
        ("", "", None),
    ],
)
def test_openais_key_goes_to_openais_server_only(
    monkeypatch: pytest.MonkeyPatch, own_key: str, openai_url: str, sent: str | None
) -> None:
    monkeypatch.setenv("TRUNKLINE_API_KEY", own_key)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("OPENAI_BASE_URL", openai_url)
    assert find_key(ClientSettings(base_url="http://there")) == sent


def test_a_key_that_cannot_be_one(run: Any, complaint: Any, server: Any) -> None:
    result = run("status", "--api-key", "gehéim", url=server.base_url)
    assert result.exit_code == 2
    assert "--api-key or TRUNKLINE_API_KEY is no key" in complaint(result)
    assert "gehéim" not in result.output


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trunkline", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"},
        # A test run in the background ignores the signal, and its children would too.
        preexec_fn=_hear_interrupts,  # noqa: PLW1509  # it does nothing that a thread could hold
    )


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_ends_it_quietly(server: Any, engine: Any, batch_file: Path) -> None:
    batch = server.create(batch_file.read_bytes())
    server.wait(batch.id, "in_progress")
    process = _start("status", batch.id, "--watch", "--base-url", server.base_url)
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first.startswith(f"{batch.id} in_progress 0/5")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130
    assert rest.splitlines() == [
        f"trunkline: interrupted; `trunkline status {batch.id} --watch` goes on watching"
    ]
    engine.complete(engine.claim())


def test_a_reader_that_has_enough_ends_it_quietly(
    jsonl: Any, server: Any, engine: Any, tmp_path: Path
) -> None:
    batch = server.create(jsonl([engine.line(f"request-{i}", user="x" * 99) for i in range(900)]))
    engine.complete(engine.claim())
    server.wait_for_end(batch.id)
    process = _start("fetch", batch.id, "-o", "-", "--base-url", server.base_url)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(HANG_SECONDS) != 0
    assert "Traceback" not in said


def test_the_commands_are_joined_and_light(
    run: Any,
) -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]  # each has a function
    assert names == {
        name for name, module in COMMANDS.items() if module.endswith("client.commands")
    }
    script = (
        "import sys, trunkline.server.client.commands; "
        "print(*sorted({'httpx', 'openai', 'rich', 'sqlalchemy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"
    script = (
        "import sys, trunkline.server.client.actions; "
        "print(*sorted({'openai', 'fastapi', 'sqlalchemy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"
