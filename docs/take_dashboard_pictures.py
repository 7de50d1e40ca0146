"""Takes the pictures of the dashboard, `docs/pictures/dashboard-*.png`, of a server that works.

Run as `python docs/take_dashboard_pictures.py` after a change of how the dashboard looks. It takes
some minutes on a CPU, and needs Chromium and the Python package `playwright`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, sync_playwright

PICTURES = Path(__file__).parent / "pictures"
SIZE = {"width": 1200, "height": 760}
SMALL_SIZE = {"width": 360, "height": 760}
# Until a view has shown its first values.
SETTLE_SECONDS = 3.0


def requests(num_rounds: int, max_tokens: int) -> bytes:
    """The demo's requests so many times over, each time a little different; three cannot be run."""
    lines: list[dict[str, Any]] = []
    for number in range(num_rounds):
        for text in files("trunkline.server.demo").joinpath("requests.jsonl").open():
            line = json.loads(text)
            line["custom_id"] += f"-{number}"
            line["body"]["messages"][-1]["content"] += f" (Attempt {number}.)"
            line["body"]["max_tokens"] = max_tokens + 4 * number
            lines.append(line)
    lines[3]["body"]["temperature"] = 9
    lines[5]["body"]["temperature"] = 9
    lines[20]["body"]["max_tokens"] = 100_000
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "trunkline", "serve", "--port", str(port)),
                *("--data-dir", folder),
            ],
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
        try:
            take_pictures(f"http://127.0.0.1:{port}")
        finally:
            server.terminate()
            server.wait()


def take_pictures(origin: str) -> None:
    http = httpx.Client(base_url=origin, timeout=60)
    wait_until(lambda: _is_ready(http), 300)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        small = create(http, requests(1, 8), "reviews-monday.jsonl")
        wait_until(lambda: _get(http, small)["status"] == "completed", 600)
        stopped = create(http, requests(1, 64), "reviews-draft.jsonl")
        http.post(f"/v1/batches/{stopped}/cancel").raise_for_status()
        create(http, b'{"custom_id": "a"}\n', "notes.jsonl")
        large = create(http, requests(8, 48), "reviews-tuesday.jsonl")
        waiting = create(http, requests(2, 24), "reviews-wednesday.jsonl")
        wait_until(lambda: _get(http, waiting)["status"] == "in_progress", 60)
        http.post(f"/v1/batches/{waiting}/pause").raise_for_status()
        wait_until(lambda: _share(_get(http, large)) > 0.2, 900)
        picture(browser, f"{origin}/dashboard/#/batches/{large}", "batch", is_whole=True)
        picture(browser, f"{origin}/dashboard/#/batches", "batches")
        picture(browser, f"{origin}/dashboard/#/engines", "engines-dark", scheme="dark")
        picture(browser, f"{origin}/dashboard/#/batches", "batches-dark", scheme="dark")
        picture(browser, f"{origin}/dashboard/#/batches", "batches-small", size=SMALL_SIZE)
        picture(browser, f"{origin}/dashboard/#/new", "new")
        browser.close()


def picture(
    browser: Browser,
    url: str,
    name: str,
    scheme: Any = "light",
    size: Any = SIZE,
    is_whole: bool = False,
) -> None:
    """Write `dashboard-NAME.png`; `is_whole`: the page to its end, not a screen of it."""
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.goto(url)
    time.sleep(SETTLE_SECONDS)
    page.screenshot(path=PICTURES / f"dashboard-{name}.png", full_page=is_whole)
    page.close()


def create(http: httpx.Client, content: bytes, name: str) -> str:
    """The id of a new batch."""
    upload = http.post("/v1/files", data={"purpose": "batch"}, files={"file": (name, content)})
    batch = http.post(
        "/v1/batches",
        json={
            "input_file_id": upload.raise_for_status().json()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        },
    )
    return str(batch.raise_for_status().json()["id"])


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s")
        time.sleep(0.5)


def _is_ready(http: httpx.Client) -> bool:
    try:
        return bool(http.get("/readyz").json()["engine_alive"])
    except httpx.TransportError:
        return False


def _get(http: httpx.Client, batch_id: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/v1/batches/{batch_id}").json()
    return found


def _share(batch: dict[str, Any]) -> float:
    counts = batch["request_counts"]
    return float((counts["completed"] + counts["failed"]) / max(counts["total"], 1))


if __name__ == "__main__":
    main()
