"""The device that the parts run on, its measured rates, and where results go."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import triton

from gpu.results import results_file
from harness.rows import commit_name, write_records
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


def dtype() -> torch.dtype:
    """What the models are in; the interpreter's products in bfloat16 are wrong."""
    return torch.float32 if IS_TOY else torch.bfloat16


@functools.cache
def hardware() -> Hardware:
    """Rates measured in this process."""
    if IS_TOY:
        return measure_device(device(), dtype(), TOY_PROCESSOR_BYTES)
    _, total = torch.cuda.mem_get_info(device())
    return measure_device(device(), dtype(), float(total))


def microseconds(operation: Callable[[], object]) -> float:
    """Median time of `operation` on the device."""
    if IS_TOY:
        started = time.perf_counter()
        operation()
        return 1e6 * (time.perf_counter() - started)
    times: Any = triton.testing.do_bench(operation, warmup=25, rep=100, return_mode="median")
    return 1000.0 * float(times)


def synchronise() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


def write_results(part: str, records: Iterable[dict[str, Any]]) -> None:
    """Write a part's results, each with the machine that it was measured on."""
    machine = {
        "part": f"gpu-{part}",
        "device": device_name(),
        "commit": commit_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "flops": round(hardware().flops),
        "bandwidth": round(hardware().bandwidth),
    }
    write_records(results_file(part), [machine | record for record in records])


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is wanted; infinite where NaN was found."""
    difference = (found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30)
    return float(difference.nan_to_num(nan=float("inf")))
