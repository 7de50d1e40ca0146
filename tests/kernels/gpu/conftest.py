"""These tests run on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.triton_modules import HAS_GPU, import_kernels

if not import_kernels():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if not HAS_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if HAS_GPU else "cpu")
