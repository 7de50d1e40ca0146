"""These tests run on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.triton_modules import HAS_GPU, import_kernels

if not import_kernels():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here."""


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if HAS_GPU else "cpu")
