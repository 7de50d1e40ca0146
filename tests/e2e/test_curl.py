"""The README's curl commands, as they are written there; the default model answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import missing

pytestmark = pytest.mark.e2e

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_commands(installation: Any, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        missing("curl is not installed")
    commands = re.search(
        r"<!-- a test runs these commands -->\n```sh\n(.*?)```", README.read_text(), re.DOTALL
    )
    assert commands is not None
    installation.start()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands[1]],
        cwd=tmp_path,
        env={**os.environ, "BASE": f"http://127.0.0.1:{installation.port}"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = {(r := json.loads(line))["custom_id"]: r for line in done.stdout.splitlines()}
    assert set(results) == {"a", "b"}
    content = results["a"]["response"]["body"]["choices"][0]["message"]["content"]
    assert "Paris" in content
