"""These tests run on a GPU where there is one, else in Triton's interpreter.

Triton decides between the two when a kernel's module is imported, so the modules are imported here.
The variable is unset again: the other suites of the process shall not take Triton for available.
"""

from __future__ import annotations

import importlib
import importlib.util
import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()

if importlib.util.find_spec("triton") is None:
    if os.environ.get("CI") == "true":
        raise RuntimeError("Triton is not installed")
    collect_ignore_glob = ["test_*.py"]
else:
    if not HAS_GPU:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        importlib.import_module("trunkline.kernels.gpu.variants").all_variants()
    finally:
        os.environ.pop("TRITON_INTERPRET", None)


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if not HAS_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if HAS_GPU else "cpu")
