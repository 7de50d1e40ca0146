"""The tree as the tests of this folder see it."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The folders that make up the project; whatever else lies in a checkout is not looked at.
FOLDERS = (
    *("server", "store", "engine", "kernels", "migrations"),
    *("tests", "benchmarks", "docs", "docker", "deploy"),
)
CODE_FOLDERS = ("server", "store", "engine", "kernels", "migrations", "benchmarks")
TEXT_SUFFIXES = frozenset(
    {".py", ".md", ".toml", ".yaml", ".yml", ".mako", ".html", ".css", ".js", ".mjs", ".Dockerfile"}
)


def _files(*folders: str) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not {"__pycache__", "node_modules"} & set(path.parts)
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def package_sources() -> list[Path]:
    """The Python files of the package and of the benchmarks."""
    files = _files(*CODE_FOLDERS)
    return [
        *(path for path in files if path.suffix == ".py"),
        *(ROOT / "src" / "trunkline").glob("*.py"),
    ]


@pytest.fixture(scope="session")
def python_sources(package_sources: list[Path]) -> list[Path]:
    """All Python files, tests and scripts too."""
    return [*package_sources, *(p for p in _files("tests", "docs") if p.suffix == ".py")]


@pytest.fixture(scope="session")
def texts() -> list[Path]:
    """All files that people write: code, documents, configuration."""
    top = [
        path
        for path in ROOT.iterdir()
        if path.is_file() and (path.suffix in TEXT_SUFFIXES or path.name == "Makefile")
    ]
    return sorted([*top, *(p for p in _files(*FOLDERS) if p.suffix in TEXT_SUFFIXES)])


@pytest.fixture(scope="session")
def documents(texts: list[Path]) -> list[Path]:
    """All Markdown files."""
    return [path for path in texts if path.suffix == ".md"]
