"""The dashboard is there for everybody: without a mouse, without sight, on a small screen."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.e2e


def test_nothing_there_yet_says_what_to_do(
    page: Any, locked_site: tuple[Any, str], check_accessible: Any
) -> None:
    site, _ = locked_site
    key = site.trunkline("keys", "create", "--project", "empty").strip()
    page.add_init_script(f"sessionStorage.setItem('trunkline.api_key', '{key}')")
    site.open(page, "/batches")
    example = page.get_by_role("region", name="Python example")
    example.wait_for()
    assert f'base_url="{site.origin}/v1"' in example.inner_text()
    check_accessible(page, "no batches")
    site.open(page, "/engines")
    page.get_by_role("heading", name="No engine is alive").wait_for()
    check_accessible(page, "no engines")


def test_by_keyboard(page: Any, site: Any) -> None:
    site.open(page, "/batches")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    site.open(page, "/nowhere")
    page.get_by_role("heading", name="There is no such page").wait_for()
    assert page.evaluate("document.activeElement.tagName") == "H1"


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_accessible_in_every_view_and_on_small_screens(
    page: Any, site: Any, check_accessible: Any, theme: str
) -> None:
    batch = site.create(site.short_batch)
    refused = site.create(b"{}\n")
    page.emulate_media(color_scheme="dark" if theme == "light" else "light")
    page.goto(f"{site.origin}/dashboard")
    # Against the system's choice.
    page.get_by_role("button", name=f"{theme.capitalize()} theme").click()
    site.open(page, f"/batches/{batch}")
    site.wait_for_badge(page, "completed")
    views = {
        "/batches": "table:visible",
        f"/batches/{batch}": "svg.chart",
        f"/batches/{refused}": "table:visible",
        "/engines": "[role=meter]",
        "/new": "form",
        "/nowhere": "h1",
    }
    for view, content in views.items():
        site.open(page, view)
        page.locator(content).first.wait_for()
        if page.locator("summary:visible").count():
            page.locator("summary:visible").first.click()
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        check_accessible(page, view)
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, view
        page.set_viewport_size({"width": 1200, "height": 900})
    page.get_by_role("button", name="API key").click()
    check_accessible(page, "the dialog for the key")
