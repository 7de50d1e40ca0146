"""A folder filled for a GPU that is not there is found by another process, and after a move.

In processes of their own: in this one Triton may be interpreted.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import missing

# Quick to compile: a size of the norms has two kernels, each of the others one.
LAUNCHES = ("norms, 576, bfloat16", "token_masks, 128256, bfloat16", "silu_mul, 288, bfloat16")
NUM_KERNELS = 4
# Another launch of a kernel that is in the folder, in another specialisation.
OTHER_LAUNCH = "token_masks, 50257, bfloat16"

# What a part does on the GPU's machine, here with a GPU that is not there.
PART = """
import sys
from pathlib import Path
import torch
from triton.runtime import cache
from gpu.absent_gpu import make_library, pretend
from gpu.compile_cache import CacheListener, use_cache, write_manifest
from gpu.launches import warm

folder, scratch, build, name = *map(Path, sys.argv[1:3]), *sys.argv[3:]
if build:
    cache.triton_key = lambda: build
print(*use_cache(folder), sep="\\n")
make_library(scratch)
pretend(scratch)
listener = CacheListener().install()
warm(torch.device("cpu"), [name])
print(listener)
write_manifest(folder)
"""

pytestmark = [pytest.mark.aot, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _triton() -> None:
    if importlib.util.find_spec("triton") is None:
        missing("Triton is not installed")


def run(benchmarks: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with Triton for compilation."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=benchmarks,
        env={**kept, "PYTHONPATH": f"{benchmarks.parent / 'src'}:{benchmarks}"},
        capture_output=True,
        text=True,
        check=False,
    )


def fill(benchmarks: Path, folder: Path, *names: str) -> str:
    """What filling `folder` for the named launches says that it found and compiled."""
    chosen = [argument for name in names for argument in ("--only", name)]
    arguments = ("-m", "gpu.fill_cache", folder, "--any-version", "--processes=1", *chosen)
    done = run(benchmarks, *arguments)
    assert done.returncode == 0, done.stderr[-5000:]
    (line,) = (line for line in done.stdout.splitlines() if "not in the cache" in line)
    return line


def test_what_was_compiled_is_found_again_also_elsewhere(benchmarks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = fill(benchmarks, folder, *LAUNCHES)
    assert first.startswith(f"{NUM_KERNELS} kernels, {NUM_KERNELS} not in the cache: ")
    for kernel in ("add_rms_norm_kernel(", "silu_mul_kernel(", "token_masks_kernel("):
        assert kernel in first

    moved = folder.rename(tmp_path / "moved")
    assert fill(benchmarks, moved, *LAUNCHES) == f"{NUM_KERNELS} kernels, 0 not in the cache"

    other = fill(benchmarks, moved, *LAUNCHES, OTHER_LAUNCH)
    assert other.startswith(f"{NUM_KERNELS + 1} kernels, 1 not in the cache: token_masks_kernel(")


def test_kernels_of_another_build_of_triton_are_found(benchmarks: Path, tmp_path: Path) -> None:
    def part(build: str) -> list[str]:
        arguments = (tmp_path / "cache", tmp_path, build, OTHER_LAUNCH)
        done = run(benchmarks, "-c", PART, *arguments)
        assert done.returncode == 0, done.stderr[-5000:]
        return done.stdout.splitlines()

    (tmp_path / "cache").mkdir()
    note, found = part("another build")
    assert "was not filled" in note
    assert found.startswith("1 kernels, 1 not in the cache")
    note, found = part("")
    assert "another build of the same Triton" in note
    assert found == "1 kernels, 0 not in the cache"


def test_what_the_parts_launch_is_in_the_list(benchmarks: Path, tmp_path: Path) -> None:
    done = run(benchmarks, Path(__file__).with_name("rehearsal.py"), tmp_path)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.split() == []


def test_other_versions_are_refused(benchmarks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    program = "from gpu import fill_cache as f; f.VERSIONS['triton'] = '2.0.0'; f.main()"
    done = run(benchmarks, "-c", program, folder)
    assert done.returncode != 0
    assert "2.0.0" in done.stderr
    assert "--any-version" in done.stderr
    assert not folder.exists()


def test_an_unknown_launch_is_refused(benchmarks: Path, tmp_path: Path) -> None:
    done = run(benchmarks, "-m", "gpu.fill_cache", tmp_path, "--any-version", "--only", "silo")
    assert done.returncode != 0
    assert "no launch has 'silo' in its name" in done.stderr
