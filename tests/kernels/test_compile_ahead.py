"""Every GPU kernel compiles for every target, and keeps its registers in registers.

In a process of its own: in this one Triton may be interpreted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Also TARGETS and SHARED_LIMITS of kernels/gpu/ahead.py, whose import would import Triton.
SHARED_LIMITS = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}

# Attention over 16-bit elements is what Hopper's matrix instructions are for.
WGMMA_VARIANT = re.compile(r"attention_bf16_.*sm_90")


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    if importlib.util.find_spec("triton") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Triton is not installed")
        pytest.skip("Triton is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "trunkline.kernels.gpu.ahead"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=590
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_variant_compiles_and_nothing_spills(compiled: list[dict[str, Any]]) -> None:
    assert {row["target"] for row in compiled} == set(SHARED_LIMITS)
    spilling = [row for row in compiled if row["spilled_bytes"]]
    assert spilling == []
    too_large = [row for row in compiled if row["shared_bytes"] > SHARED_LIMITS[row["target"]]]
    assert too_large == []


def test_names_differ(compiled: list[dict[str, Any]]) -> None:
    names = [(row["variant"], row["target"]) for row in compiled]
    assert len(names) == len(set(names))


def test_hopper_uses_its_matrix_instructions(compiled: list[dict[str, Any]]) -> None:
    found = [row["uses_wgmma"] for row in compiled if WGMMA_VARIANT.match(row["variant"])]
    assert found
    assert all(found)


def test_page_of_kernels_lists_every_variant(compiled: list[dict[str, Any]]) -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "kernels.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\S+)` \| `(\S+)` \|", page, re.MULTILINE)
    assert listed == [(row["variant"], row["target"]) for row in compiled]
