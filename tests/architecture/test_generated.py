"""Generated files are what their generators make."""

from __future__ import annotations

import runpy
from pathlib import Path


def test_demo_requests_are_current(root: Path) -> None:
    build = runpy.run_path(str(root / "server" / "demo" / "build.py"))
    committed = (root / "server" / "demo" / "requests.jsonl").read_text(encoding="utf-8")
    assert committed == build["batch_file"]()


def test_settings_page_is_current(root: Path) -> None:
    generate = runpy.run_path(str(root / "docs" / "generate_settings.py"))
    committed = (root / "docs" / "settings.md").read_text(encoding="utf-8")
    assert committed == generate["settings_page"]()
