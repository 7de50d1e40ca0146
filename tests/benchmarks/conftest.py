"""Benchmarks are programs, not a part of the package: their folder is put on the import path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"

sys.path.append(str(BENCHMARKS))


@pytest.fixture
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture
def benchmarks() -> Path:
    """The folder of the benchmarks."""
    return BENCHMARKS
