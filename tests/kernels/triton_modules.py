"""Imports the modules of the GPU kernels, for a GPU or for Triton's interpreter.

Triton decides between the two when a kernel's module is imported. The variable that tells it is
unset again: the other suites of the process shall not take Triton for available.
"""

from __future__ import annotations

import importlib
import importlib.util
import os

import torch

HAS_GPU = torch.cuda.is_available()


def import_kernels() -> bool:
    """Whether there is Triton.

    Raises:
        RuntimeError: there is none, in continuous integration.
    """
    if importlib.util.find_spec("triton") is None:
        if os.environ.get("CI") == "true":
            raise RuntimeError("Triton is not installed")
        return False
    if not HAS_GPU:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        importlib.import_module("trunkline.kernels.gpu.variants").all_variants()
    finally:
        os.environ.pop("TRITON_INTERPRET", None)
    return True
