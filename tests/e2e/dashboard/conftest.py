"""A server with the dashboard, and a real browser.

Needs Chromium (Debian's package `chromium`), and from PyPI `playwright`, whose own browsers are not
used, and `axe-playwright-python`, for the copy of axe-core that it carries.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.braking import Brake
from tests.e2e.small_engine import MODEL, small_engine
from tests.support import free_port, missing

START_SECONDS = 240.0  # the first start fetches the model that the small one is made like
PAGE_MILLISECONDS = 120_000.0  # only what hangs takes so long
BATCH_MILLISECONDS = 240_000.0
HOSTILE = "<img src=x onerror=alert(1)>"


def _line(custom_id: str, max_tokens: int, **body: Any) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "You are a patient teacher of arithmetic. " * 8},
        {"role": "user", "content": f"Count from {custom_id} on."},
    ]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": MODEL,
            "messages": messages,
            "max_tokens": max_tokens,
            "ignore_eos": True,
            **body,
        },
    }


def _jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _short_batch() -> bytes:
    good = [_line(f"{i}", 4 + 12 * i) for i in range(12)]
    bad = [_line(HOSTILE, 4, temperature=9), _line("long", 100_000)]
    return _jsonl([*good[:3], *bad, *good[3:]])


class Site:
    """A server process with the dashboard, and what tests do to both."""

    model = MODEL
    hostile = HOSTILE
    # Requests that end one after the other, and two that cannot be run.
    short_batch = _short_batch()
    # One that ends at once, and some that do not.
    long_batch = _jsonl([_line("first", 1), *(_line(f"{i}", 4000) for i in range(4))])

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.brake = Brake(folder / "brake")
        self.port = free_port()
        self.origin = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.origin, timeout=120)
        self._environment = {**os.environ, "PYTHONSAFEPATH": "1", **self.brake.environment}
        self._process: subprocess.Popen[bytes] | None = None

    def trunkline(self, *arguments: str) -> str:
        """What a command prints that works on this server's data."""
        return subprocess.run(
            [sys.executable, "-m", "trunkline", *arguments, *self._data],
            check=True,
            capture_output=True,
            text=True,
            env=self._environment,
        ).stdout

    def start(self, command: str, *options: str) -> None:
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "trunkline", command, "--port", str(self.port)),
                    *self._data,
                    *options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )

    def wait_until(self, is_ready: Callable[[Mapping[str, Any]], bool]) -> None:
        """Wait until `/readyz` says so."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            assert self._process is not None
            assert self._process.poll() is None, (self.folder / "log").read_text()
            try:
                if is_ready(self.http.get("/readyz").json()):
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)

    def stop(self) -> None:
        self.http.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=60)

    def upload(self, content: bytes, name: str = "in.jsonl", **headers: str) -> str:
        """The id of a new file."""
        reply = self.http.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": (name, content)}, headers=headers
        )
        return str(reply.raise_for_status().json()["id"])

    def create(self, content: bytes, name: str = "in.jsonl", **headers: str) -> str:
        """The id of a new batch."""
        body = {
            "input_file_id": self.upload(content, name, **headers),
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        reply = self.http.post("/v1/batches", json=body, headers=headers)
        return str(reply.raise_for_status().json()["id"])

    def open(self, page: Any, view: str) -> None:
        page.goto(f"{self.origin}/dashboard/#{view}")

    def wait_for_badge(self, page: Any, status: str) -> None:
        """Wait until the view of a batch says that this is its status."""
        found = page.locator(f".title .badge[data-status='{status}']")
        found.wait_for(timeout=BATCH_MILLISECONDS)

    @property
    def _data(self) -> tuple[str, str]:
        return ("--data-dir", str(self.folder / "data"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium."""
    path = shutil.which("chromium")
    if path is None:
        missing("Chromium is not installed")
    for name in ("playwright", "axe_playwright_python"):
        if importlib.util.find_spec(name) is None:
            missing(f"{name} is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def site(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with an engine, and without keys."""
    made = Site(tmp_path_factory.mktemp("site"))
    made.start("serve", *small_engine())
    try:
        made.wait_until(lambda ready: bool(ready["engine_alive"]))
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def locked_site(
    browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, str]]:
    """A server that wants a key, without an engine; and the key."""
    made = Site(tmp_path_factory.mktemp("locked"))
    key = made.trunkline("keys", "create", "--project", "night").strip()
    made.start("server", "--served-model-name", MODEL)
    try:
        made.wait_until(lambda ready: ready["status"] == "ready")
        yield made, key
    finally:
        made.stop()


@pytest.fixture
def brake(site: Site) -> Iterator[Brake]:
    """Holds the site's engine when a test says so, until its end."""
    yield site.brake
    site.brake.release()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of its own session, on which nothing may go wrong unseen."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    context.set_default_timeout(PAGE_MILLISECONDS)
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    opened.on(
        "console",
        lambda message: (
            problems.append(message.text)
            if message.type == "error" and "Failed to load resource" not in message.text
            else None
        ),
    )
    yield opened
    context.close()
    assert problems == []


@pytest.fixture(scope="session")
def check_accessible() -> Callable[[Any, str], None]:
    """Fails when axe-core finds something serious or critical on a page."""

    def check(page: Any, view: str) -> None:
        page.evaluate(
            files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
        )
        violations = page.evaluate("axe.run().then((result) => result.violations)")
        grave = [
            (violation["id"], [node["html"] for node in violation["nodes"]])
            for violation in violations
            if violation["impact"] in ("serious", "critical")
        ]
        assert grave == [], view

    return check
