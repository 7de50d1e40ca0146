"""Whether Triton's kernels can run, and how many programs fill a device.

Imports no Triton: it is missing on some platforms.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

# Programs of a persistent launch in the interpreter: more than one, so that they share the work.
INTERPRETED_PROCESSORS = 3


def triton_for(tensor: Tensor) -> bool:
    """Whether Triton's kernels take the tensor: on a GPU, or anywhere in the interpreter."""
    return (tensor.is_cuda or is_interpreted()) and _has_triton()


def is_interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors (compute units) of the device."""
    if device.type == "cpu":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def architecture(device: torch.device) -> str:
    """The device's class in the tuning table, as `ahead.TARGETS` names them."""
    if device.type == "cpu":
        return "sm_80"
    if torch.version.hip is not None:
        return "gfx942"
    return "sm_90" if torch.cuda.get_device_capability(device)[0] >= 9 else "sm_80"
