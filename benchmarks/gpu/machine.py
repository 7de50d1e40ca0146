"""The device that the parts run on, its measured rates, and how time is taken there."""

from __future__ import annotations

import functools
import gc
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton

from gpu.compile_cache import CacheListener, use_cache
from gpu.parts import Record
from harness.rows import commit_name
from trunkline.engine.calibration import measure_device
from trunkline.engine.simulation.hardware import Hardware

# Tiny sizes, which Triton's interpreter can do on a CPU.
IS_TOY = os.environ.get("TRUNKLINE_BENCH_TOY") == "1"
TOY_PROCESSOR_BYTES = 2**30


@functools.cache
def device() -> torch.device:
    """The GPU; the CPU for toys.

    Raises:
        SystemExit: there is no GPU.
    """
    if IS_TOY:
        torch.set_num_threads(1)
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here; --toy runs tiny sizes on a CPU")
    return torch.device("cuda")


def device_name() -> str:
    return "interpreter" if IS_TOY else torch.cuda.get_device_name(device())


def memory_bytes() -> int:
    """Of the whole device."""
    return TOY_PROCESSOR_BYTES if IS_TOY else torch.cuda.mem_get_info(device())[1]


def capability() -> str:
    """The GPU's compute capability."""
    if IS_TOY:
        return "none"
    return ".".join(map(str, torch.cuda.get_device_capability(device())))


def dtype() -> torch.dtype:
    """What the models are in; the interpreter's products in bfloat16 are wrong."""
    return torch.float32 if IS_TOY else torch.bfloat16


def dtype_name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


@functools.cache
def hardware() -> Hardware:
    """Rates measured in this process, once."""
    measured = measure_device(device(), dtype(), float(memory_bytes()))
    if device().type == "cuda":
        torch.cuda.empty_cache()
    return measured


@functools.cache
def header(part: str) -> Record:
    """What every record of a part carries: where it was measured, and with what."""
    return {
        "part": f"gpu-{part}",
        "device": device_name(),
        "commit": commit_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "flops": round(hardware().flops),
        "bandwidth": round(hardware().bandwidth),
    }


def describe() -> str:
    """The header and more, as one line of text."""
    rates = f"{hardware().flops / 1e12:.3g} TFLOP/s, {hardware().bandwidth / 1e12:.3g} TB/s"
    return (
        f"{device_name()}, capability {capability()}, {memory_bytes() / 2**30:.1f} GiB, "
        f"measured {rates}; torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"Triton {triton.__version__}, Python {platform.python_version()}; commit {commit_name()}"
    )


@functools.cache
def kernels() -> CacheListener:
    """Counts the kernels that this process finds compiled, and those that it compiles."""
    return CacheListener().install()


def use_kernels() -> list[str]:
    """Have Triton look for compiled kernels in the folder that KERNEL_CACHE names, and count.

    Returns:
        See `compile_cache.use_cache`.
    """
    kernels()
    folder = os.environ.get("KERNEL_CACHE")
    return use_cache(Path(folder)) if folder and not IS_TOY else []


def microseconds(operation: Callable[[], object]) -> float:
    """Median time of `operation` on the device."""
    if IS_TOY:
        started = time.perf_counter()
        operation()
        return 1e6 * (time.perf_counter() - started)
    times: Any = triton.testing.do_bench(operation, warmup=25, rep=100, return_mode="median")
    return 1000.0 * float(times)


def synchronise() -> None:
    """Wait for the device; errors of what it was given come to light here."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def is_usable() -> bool:
    """Whether the device still takes work of this process; memory without an owner is freed.

    After an illegal access or a failed assertion every call fails, until the process ends.
    """
    gc.collect()
    if device().type != "cuda":
        return True
    try:
        synchronise()
        torch.cuda.empty_cache()
        torch.ones(1, device=device()).item()
    except RuntimeError:
        return False
    return True


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is wanted; the largest number for NaN."""
    difference = (found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30)
    return float(difference.nan_to_num(nan=torch.finfo(torch.float64).max))
