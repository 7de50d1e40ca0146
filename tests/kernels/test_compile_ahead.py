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

from tests.support import missing

# Also TARGETS and SHARED_LIMITS of kernels/gpu/ahead.py, whose import would import Triton.
SHARED_LIMITS = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}

# Attention over 16-bit elements is what Hopper's matrix instructions are for.
WGMMA_VARIANT = re.compile(r"attention_bf16_(?!.*small).*sm_90")

# Of a stack that no shape with a second buffer was found without.
SPILLED_BYTES = {"attention_fp32_256_sm_90": 8, "attention_fp32_256_cap_sm_90": 8}

# Targets with asynchronous copies to shared memory.
ASYNCHRONOUS = {"sm_80", "sm_90"}

KERNELS = {
    *("add_rms_norm", "attention", "merge", "rope_and_cache"),
    *("sample", "silu_mul", "token_masks"),
}
ONE_OF_EACH_KERNEL = ("--target", "sm_90", "--one-of-each-kernel")
UNPIPELINED = """
import dataclasses, json
from trunkline.kernels.gpu.ahead import compile_variant
from trunkline.kernels.gpu.attention_variants import variants
(variant,) = [one for one in variants() if one.name == "attention_bf16_64_sm_90"]
resources = compile_variant(dataclasses.replace(variant, num_stages=1), "sm_90")
print(json.dumps(dataclasses.asdict(resources)))
"""
PAIRS = """
import json
from trunkline.kernels.gpu.ahead import all_pairs
print(json.dumps([(variant.name, target) for variant, target in all_pairs()]))
"""

# All variants for all targets take minutes, on a slow machine some tens of them.
pytestmark = [pytest.mark.aot, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module", autouse=True)
def _triton() -> None:
    if importlib.util.find_spec("triton") is None:
        missing("Triton is not installed")


def run(*arguments: str, **environment: str) -> str:
    """What Python puts out, with Triton for compilation."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


def compile_ahead(*arguments: str, **environment: str) -> list[dict[str, Any]]:
    """What the variants take that the arguments choose."""
    lines = run("-m", "trunkline.kernels.gpu.ahead", *arguments, **environment).splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    """Names of all variants, each with a target."""
    return [(name, target) for name, target in json.loads(run("-c", PAIRS))]


def check(compiled: list[dict[str, Any]]) -> None:
    spilling = [
        row for row in compiled if row["spilled_bytes"] > SPILLED_BYTES.get(row["variant"], 0)
    ]
    assert spilling == []
    too_large = [row for row in compiled if row["shared_bytes"] > SHARED_LIMITS[row["target"]]]
    assert too_large == []
    on_hopper = [row["uses_wgmma"] for row in compiled if WGMMA_VARIANT.match(row["variant"])]
    assert on_hopper
    assert all(on_hopper)
    attention = [row for row in compiled if row["variant"].startswith("attention_")]
    assert attention
    assert [row for row in attention if not overlaps(row)] == []


def overlaps(row: dict[str, Any]) -> bool:
    """Whether every kind of tile loads a block of keys and values while it computes another."""
    buffers = [pipeline["buffers"] for pipeline in row["pipelines"]]
    waits = [pipeline["waits"] for pipeline in row["pipelines"]]
    has_copies = all(waits) if row["target"] in ASYNCHRONOUS else waits == [None] * len(waits)
    return bool(buffers) and min(buffers) >= 2 and has_copies


def test_one_variant_of_each_kernel_compiles_and_does_not_spill(tmp_path: Path) -> None:
    compiled = compile_ahead(*ONE_OF_EACH_KERNEL)
    names = [row["variant"] for row in compiled]
    assert {name.split("_bf16")[0] for name in names} == KERNELS
    check(compiled)
    # Nothing is compiled again, where it could not be.
    (tmp_path / "file").touch()
    environment = {"TRITON_CACHE_DIR": str(tmp_path / "file")}
    assert compile_ahead(*ONE_OF_EACH_KERNEL, **environment) == compiled


def test_a_loop_that_is_not_pipelined_is_seen() -> None:
    row = json.loads(run("-c", UNPIPELINED))
    assert [pipeline["buffers"] for pipeline in row["pipelines"]] == [1, 1, 1]
    assert not overlaps(row)


@pytest.mark.slow
def test_every_variant_compiles_and_nothing_spills(pairs: list[tuple[str, str]]) -> None:
    compiled = compile_ahead()
    assert [(row["variant"], row["target"]) for row in compiled] == pairs
    check(compiled)


def test_names_differ(pairs: list[tuple[str, str]]) -> None:
    assert {target for _, target in pairs} == set(SHARED_LIMITS)
    assert len(pairs) == len(set(pairs))


def test_page_of_kernels_lists_every_variant(pairs: list[tuple[str, str]]) -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "kernels.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\S+)` \| `(\S+)` \|", page, re.MULTILINE)
    assert listed == pairs
