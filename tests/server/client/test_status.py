"""`trunkline status` against a live server, and what it shows."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.server.live_server import HANG_SECONDS
from tests.server.stores import on_sqlite
from trunkline.server.client import api, display, watch
from trunkline.server.client.replies import Batch, Progress

# What a client sees of a server is the same on every database.
pytestmark = pytest.mark.parametrize("server", ["sqlite"], indirect=True)


def test_status_of_all(run: Any, server: Any, engine: Any, batch_file: Path) -> None:
    batch = server.create(batch_file.read_bytes())
    engine.complete(engine.claim(), failing={"request-1"})
    server.wait_for_end(batch.id)
    result = run("status", url=server.base_url)
    assert result.exit_code == 0
    (line,) = [line for line in result.stdout.splitlines() if batch.id in line]
    assert line.split()[:4] == [batch.id, "completed", "5/5", "1"]
    assert "ago" in line
    assert line.rstrip().endswith(engine.model)
    assert "\x1b" not in result.stdout
    listed = json.loads(run("status", "--json", "--limit", 1, url=server.base_url).stdout)
    assert [item["id"] for item in listed["data"]] == [batch.id]


def test_status_of_one(run: Any, server: Any, engine: Any, batch_file: Path) -> None:
    batch = server.create(batch_file.read_bytes(), metadata={"night": "\x1b[31m1"})
    claim = engine.claim()
    engine.answer(claim, limit=3, failing={"request-1"})
    result = run("status", batch.id, url=server.base_url)
    assert result.exit_code == 0
    for said in (
        *("in_progress", "3 of 5 done (60%), 1 failed", "requests/s", "time left", "must end by"),
        *("40% of the tokens", "1 x 400 invalid_request_error: too warm (line 2)", "night= [31m1"),
    ):
        assert said in result.stdout
    assert "\x1b" not in result.stdout
    run("pause", batch.id, url=server.base_url)
    assert "in_progress (paused)" in run("status", batch.id, url=server.base_url).stdout
    run("resume", batch.id, url=server.base_url)
    engine.complete(claim)
    server.wait_for_end(batch.id)
    found = json.loads(run("status", batch.id, "--json", url=server.base_url).stdout)
    assert found == server.http.get(f"/v1/batches/{batch.id}").json()


@pytest.fixture
def is_shown(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a batch that is watched is first shown."""
    event, update = threading.Event(), display.BatchWatch.update

    def update_and_tell(self: display.BatchWatch, *arguments: Any) -> None:
        update(self, *arguments)
        event.set()

    monkeypatch.setattr(display.BatchWatch, "update", update_and_tell)
    return event


def test_watch_to_the_end(
    run: Any,
    working: Any,
    server: Any,
    engine: Any,
    batch_file: Path,
    is_shown: threading.Event,
) -> None:
    batch = server.create(batch_file.read_bytes())
    with working(engine, may_end=is_shown):
        result = run("status", batch.id, "--watch", "--json", url=server.base_url)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["status"] == "completed"
    assert f"{batch.id} completed 5/5" in result.stderr


def test_watch_without_events(
    run: Any,
    working: Any,
    proxy: Any,
    server: Any,
    engine: Any,
    batch_file: Path,
    is_shown: threading.Event,
) -> None:
    batch = server.create(batch_file.read_bytes())
    with (
        proxy(server, lambda _, path, __: 404 if path.endswith("/events") else None) as between,
        working(engine, may_end=is_shown),
    ):
        result = run("status", batch.id, "--watch", url=between.url)
        assert between.requests["GET", f"/v1/batches/{batch.id}/events"] == 1
    assert result.exit_code == 0
    assert f"{batch.id} completed 5/5" in result.stderr


@on_sqlite
def test_watch_outlives_a_server(
    run: Any,
    jsonl: Any,
    make_server: Callable[..., Any],
    make_engine: Any,
    is_shown: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So that the server that starts is not kept from it by those who ask for it.
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.5)
    monkeypatch.setattr(api, "PAUSES", ())
    own = make_server()
    engine = make_engine(own)
    batch = own.create(jsonl(engine.lines(3)))
    claim = engine.claim()

    def restart() -> None:
        assert is_shown.wait(HANG_SECONDS)
        own.kill()
        own.start()
        engine.complete(claim)

    thread = threading.Thread(target=restart)
    thread.start()
    result = run("status", batch.id, "--watch", url=own.base_url)
    thread.join()
    assert result.exit_code == 0, result.stderr
    assert "completed 3/3" in result.stderr


@on_sqlite
def test_watch_gives_up_on_a_server_that_stays_away(
    run: Any,
    complaint: Any,
    jsonl: Any,
    make_server: Callable[..., Any],
    is_shown: threading.Event,
    engine: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "GIVE_UP_SECONDS", 0.5)
    own = make_server()
    batch = own.create(jsonl([{**engine.line("a"), "body": {"model": "tiny", "messages": [1]}}]))

    def end() -> None:
        assert is_shown.wait(HANG_SECONDS)
        own.kill()

    thread = threading.Thread(target=end)
    thread.start()
    result = run("status", batch.id, "--watch", url=own.base_url)
    thread.join()
    assert result.exit_code == 3
    assert "there is no server at" in complaint(result)


def test_a_refused_file_is_told_while_watching(
    run: Any, complaint: Any, jsonl: Any, server: Any, engine: Any
) -> None:
    batch = server.create(jsonl([engine.line("a"), {**engine.line("b"), "url": "/v1/x"}]))
    result = run("status", batch.id, "--watch", url=server.base_url)
    assert result.exit_code == 1
    assert f"{batch.id} failed: its input file was refused" in complaint(result)
    assert "first: line 2: The URL" in complaint(result)
    assert "line 2: The URL" in result.stdout


def test_a_cancelled_batch_is_not_a_success(
    run: Any, complaint: Any, server: Any, engine: Any, batch_file: Path
) -> None:
    batch = server.create(batch_file.read_bytes())
    claim = engine.claim()
    engine.answer(claim, limit=2)
    assert "cancelling" in run("cancel", batch.id, url=server.base_url).stdout
    engine.work.release(claim)
    result = run("status", batch.id, "--watch", url=server.base_url)
    assert result.exit_code == 1
    assert "is cancelled, and 3 of 5 lines have no answer" in complaint(result)


def test_what_a_terminal_shows() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, highlight=False)
    batch = Batch.model_validate(
        {
            "id": "batch_1",
            "status": "in_progress",
            "endpoint": "/v1",
            "created_at": 0,
            "input_file_id": "file-1",
            "request_counts": {"total": 1000, "completed": 250, "failed": 3},
        }
    )
    with display.BatchWatch(console) as bar:
        bar.update(batch, Progress(eta_seconds=83.4, requests_per_second=9.04))
    for said in ("in_progress", "253/1000", "3 failed", "9.0 requests/s", "1 min 23 s left"):
        assert said in shown.getvalue()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert display.duration(seconds) == shown
