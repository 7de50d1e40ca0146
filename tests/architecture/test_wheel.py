"""What is installed when the package is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

NOT_SOURCES = shutil.ignore_patterns(
    *(".*", "build", "dist", "*.egg-info", "__pycache__", "tests", "docs", "benchmarks"),
)

CONTENTS = (
    "trunkline/__init__.py",
    "trunkline/__main__.py",
    "trunkline/py.typed",
    "trunkline/engine/model/decoder.py",
    "trunkline/kernels/reference.py",
    "trunkline/migrations/env.py",
    "trunkline/kernels/cpu/attention.cpp",
    "trunkline/kernels/cpu/vector.h",
    "trunkline/migrations/script.py.mako",
    "trunkline/server/dashboard/index.html",
    "trunkline/server/dashboard/views/batch.js",
    "trunkline/server/demo/requests.jsonl",
    "trunkline/store/schema.py",
)


@pytest.fixture(scope="module")
def wheel_names(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in the wheel, which is built in a copy of the tree."""
    checkout = tmp_path_factory.mktemp("wheel") / "checkout"
    shutil.copytree(root, checkout, symlinks=True, ignore=NOT_SOURCES)
    result = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_wheel_has_one_top_level_name(wheel_names: list[str]) -> None:
    top_level = {name.split("/")[0] for name in wheel_names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"trunkline"}
    assert len(top_level) == 2


def test_wheel_has_every_module(wheel_names: list[str], root: Path) -> None:
    parts = ("server", "store", "engine", "kernels", "migrations")
    modules = {
        f"trunkline/{path.relative_to(root)}"
        for part in parts
        for path in (root / part).rglob("*.py")
        if all((folder / "__init__.py").exists() for folder in _folders(path, root))
    }
    assert modules <= set(wheel_names)


@pytest.mark.parametrize("name", CONTENTS)
def test_wheel_has(wheel_names: list[str], name: str) -> None:
    assert name in wheel_names


def test_wheel_has_the_licence(wheel_names: list[str]) -> None:
    assert [name for name in wheel_names if name.endswith(".dist-info/licenses/LICENSE")]


def _folders(path: Path, root: Path) -> list[Path]:
    return [folder for folder in path.parents if folder != root and root in folder.parents]
