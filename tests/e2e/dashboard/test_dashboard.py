"""The dashboard does what it is for, on a real server with an engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.braking import Brake
from trunkline.store.batch_file import ENDPOINTS

pytestmark = pytest.mark.e2e


def hold_in_the_middle(brake: Brake) -> int:
    """Let the engine, which may do nothing, go on by some steps; how many answers it has then."""
    begun = brake.wait()
    brake.allow(begun.num_done + 40)
    return brake.wait().num_answered - begun.num_answered


def test_upload_watch_and_download(page: Any, site: Any, brake: Brake, tmp_path: Path) -> None:
    brake.allow(0)
    source = tmp_path / "<b>night.jsonl"
    source.write_bytes(site.short_batch)
    page.goto(f"{site.origin}/dashboard")
    page.get_by_role("navigation").get_by_text("New batch").click()
    page.get_by_role("button", name="Upload and start").click()
    assert page.get_by_role("alert").inner_text() == "Choose a .jsonl file first."
    assert page.evaluate("document.activeElement.id") == "new-file"
    page.get_by_label("Input file").set_input_files(source)
    page.get_by_text(f"model {site.model}").wait_for()
    page.evaluate(
        """() => {
          window.seen = [];
          new MutationObserver(() => {
            const bar = document.querySelector("[role=progressbar][aria-label=Progress]");
            if (bar) window.seen.push(Number(bar.getAttribute("aria-valuenow")));
          }).observe(document.body, { attributes: true, subtree: true });
        }"""
    )
    page.get_by_role("button", name="Upload and start").click()
    page.wait_for_url(re.compile("#/batches/batch_"))
    assert page.evaluate("document.activeElement.tagName") == "H1"
    num_answered = hold_in_the_middle(brake)
    assert 0 < num_answered < 12
    num_settled = num_answered + 2  # two were refused before anything ran
    page.locator(f"[role=progressbar][aria-valuenow='{num_settled}']").wait_for()
    assert page.locator(".bar-text").inner_text() == f"{num_settled} of 14, 2 failed"
    brake.release()
    site.wait_for_badge(page, "completed")

    seen = page.evaluate("window.seen")
    assert seen == sorted(seen)
    assert seen[-1] == 14
    assert num_settled in seen
    assert page.get_by_role("heading", level=1).inner_text() == "<b>night.jsonl"
    assert page.locator(".bar-text").inner_text() == "14 of 14, 2 failed"

    errors = page.get_by_role("region", name="Failed requests by error")
    assert sorted(errors.locator("tbody .lines").all_inner_texts()) == ["4", "5"]
    assert "context_length_exceeded" in errors.inner_text()
    assert "Completed" in page.locator(".timeline [aria-current]").inner_text()
    page.get_by_role("img", name="Output tokens per second").wait_for()
    tree = page.get_by_role("img", name="Shared prefixes")
    assert "12 prompts" in tree.get_attribute("aria-label")
    assert tree.locator("rect.reused").count() >= 1

    with page.expect_download() as download:
        page.get_by_role("button", name="Output", exact=True).click()
    answers = [json.loads(text) for text in Path(download.value.path()).read_text().splitlines()]
    assert len(answers) == 12
    with page.expect_download() as download:
        page.get_by_role("button", name="Errors", exact=True).click()
    assert site.hostile in Path(download.value.path()).read_text()
    with page.expect_download() as download:
        page.get_by_role("button", name="Input", exact=True).click()
    assert Path(download.value.path()).read_bytes() == source.read_bytes()


def test_pause_priority_cancel_and_retry(page: Any, site: Any, brake: Brake) -> None:
    brake.allow(0)
    batch = site.create(site.long_batch, "long.jsonl")
    assert hold_in_the_middle(brake) == 1
    site.open(page, f"/batches/{batch}")
    site.wait_for_badge(page, "in progress")
    with page.expect_download() as download:
        page.get_by_role("button", name="Output so far").click()
    (answer,) = Path(download.value.path()).read_text().splitlines()
    assert json.loads(answer)["custom_id"] == "first"
    page.get_by_role("button", name="Pause").click()
    site.wait_for_badge(page, "paused")
    page.get_by_label("Priority").fill("7")
    page.get_by_role("button", name="Set").click()
    page.locator("#announcer", has_text="Priority set to 7").wait_for()
    page.get_by_role("button", name="Resume").click()
    site.wait_for_badge(page, "in progress")
    shown = site.http.get(f"/v1/batches/{batch}").json()
    assert shown["trunkline"] == {"priority": 7, "paused_at": None, "retry_of": None}

    page.get_by_role("button", name="Cancel batch").click()
    page.get_by_role("dialog").get_by_role("button", name="Keep it running").click()
    assert site.http.get(f"/v1/batches/{batch}").json()["status"] == "in_progress"
    page.get_by_role("button", name="Cancel batch").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel batch").click()
    site.wait_for_badge(page, "cancelled")
    assert page.evaluate("document.activeElement.tagName") == "H1"

    page.get_by_role("button", name="Retry what failed").click()
    page.wait_for_url(lambda url: "/batches/" in url and batch not in url)
    page.get_by_role("link", name=batch).wait_for()
    again = page.url.rsplit("/", 1)[1]
    site.http.post(f"/v1/batches/{again}/cancel").raise_for_status()
    site.wait_for_badge(page, "cancelled")


def test_without_the_stream_it_asks_again_and_again(page: Any, site: Any) -> None:
    page.route("**/events", lambda route: route.abort())
    batch = site.create(site.short_batch)
    site.open(page, f"/batches/{batch}")
    site.wait_for_badge(page, "completed")
    assert page.locator(".bar-text").inner_text() == "14 of 14, 2 failed"


def test_a_lost_connection_is_shown_and_passes(page: Any, site: Any) -> None:
    site.open(page, "/engines")
    page.get_by_role("heading", name=site.model).wait_for()
    page.context.set_offline(True)
    page.locator("#connection", has_text="Offline").wait_for()
    page.context.set_offline(False)
    page.wait_for_function("() => document.getElementById('connection').textContent === ''")


def test_what_is_wrong_with_an_input_is_readable(page: Any, site: Any) -> None:
    batch = site.create(b'{"custom_id": "a"}\n{"custom_id": "a"\n')
    site.open(page, f"/batches/{batch}")
    site.wait_for_badge(page, "failed")
    faults = page.get_by_role("region", name="What is wrong with the input file")
    faults.wait_for()
    assert "invalid_json_line" in faults.inner_text()
    assert page.get_by_role("button", name="Retry what failed").is_hidden()


def test_the_list_and_the_engines(page: Any, site: Any, brake: Brake) -> None:
    brake.allow(0)
    batch = site.create(site.long_batch, f"{site.hostile}.jsonl")
    hold_in_the_middle(brake)
    site.open(page, "/batches")
    row = page.get_by_role("row", name=f"{site.hostile}.jsonl")
    row.get_by_role("progressbar").wait_for()
    page.get_by_role("link", name="Engines").click()
    page.get_by_role("meter", name="KV cache in use").wait_for()
    page.wait_for_function(
        "() => Number(document.querySelector('[role=meter]').getAttribute('aria-valuenow')) > 0"
    )
    site.http.post(f"/v1/batches/{batch}/cancel").raise_for_status()
    page.get_by_role("link", name="Batches").click()
    ended = page.get_by_role("region", name="Ended")
    ended.get_by_role("link", name=f"{site.hostile}.jsonl").wait_for()


def test_a_key_is_asked_for_and_kept_in_the_tab(page: Any, locked_site: tuple[Any, str]) -> None:
    site, key = locked_site
    batch = site.create(site.short_batch, authorization=f"Bearer {key}")
    page.goto(f"{site.origin}/dashboard")
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key", exact=True).fill("wrong")
    dialog.get_by_label("Key", exact=True).press("Enter")
    dialog.get_by_text("Incorrect API key provided").wait_for()
    dialog.get_by_label("Key", exact=True).fill(key)
    dialog.get_by_role("button", name="Use key").click()
    page.get_by_role("link", name="in.jsonl").click()
    page.get_by_text(f"No engine serves {site.model}").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Input", exact=True).click()
    assert Path(download.value.path()).read_bytes() == site.short_batch
    assert key in page.evaluate("Object.values(sessionStorage)")
    assert page.evaluate("JSON.stringify(localStorage) + document.cookie").count(key) == 0

    page.get_by_role("button", name="API key set").click()
    dialog.get_by_role("button", name="Forget key").click()
    dialog.get_by_role("button", name="Close").click()
    page.get_by_role("heading", name="An API key is needed").wait_for()
    site.http.post(f"/v1/batches/{batch}/cancel", headers={"authorization": f"Bearer {key}"})


def test_a_file_can_be_dropped(page: Any, site: Any) -> None:
    site.open(page, "/new")
    text = json.dumps({"url": "/v1/completions", "body": {"model": site.hostile}})
    dropped = page.evaluate_handle(
        """(text) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([text], "dropped.jsonl"));
          return transfer;
        }""",
        text,
    )
    page.locator(".drop-zone").dispatch_event("drop", {"dataTransfer": dropped})
    page.get_by_text(f"dropped.jsonl, {len(text)} B, model {site.hostile}").wait_for()
    assert page.get_by_label("Endpoint").input_value() == "/v1/completions"


def test_endpoints_are_those_of_the_server(page: Any, site: Any) -> None:
    site.open(page, "/new")
    assert page.get_by_label("Endpoint").locator("option").all_inner_texts() == list(ENDPOINTS)
