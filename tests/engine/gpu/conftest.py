"""These tests run on a GPU where there is one, else in Triton's interpreter.

Triton decides between the two when a kernel's module is imported, so the modules are imported here.
The variable is unset again: the other suites of the process shall not take Triton for available.
"""

from __future__ import annotations

import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()

if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
try:
    from trunkline.kernels.gpu import variants

    variants.all_variants()
finally:
    os.environ.pop("TRITON_INTERPRET", None)


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here."""


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if HAS_GPU else "cpu")
