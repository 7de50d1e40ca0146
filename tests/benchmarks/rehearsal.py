"""Runs the parts `kernels` and `kernel-bench` with few rows and without a GPU, compiling nothing.

Prints, one a line, the kernels that they ask for and `gpu.launches` does not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from gpu import check_kernels, launches, machine, steps, time_kernels
from gpu.absent_gpu import make_library, pretend, replace
from triton.runtime.jit import JITFunction

from trunkline.kernels import reference

CPU = torch.device("cpu")
# As many rows as four prompts of one token.
STEP = steps.decode("", 4, 1, 16, 5)

asked: list[str] = []


class Kernel:
    """In place of a compiled one."""

    function = packed_metadata = None

    def launch_metadata(self, *_arguments: object) -> None:
        """Nobody looks at it."""

    def run(self, *_arguments: object) -> None:
        """Launches nothing."""


def do_compile(self: Any, key: str, _signature: object, device: int, *_others: object) -> Kernel:
    asked.append(f"{self.fn.__name__} {key}")
    kernel = Kernel()
    self.device_caches[device][0][key] = kernel
    return kernel


def make_small() -> None:
    """Have the parts work on few rows, without what takes time beside the launches."""
    make_launch = steps.make_launch
    replace(make_launch, lambda _step, *given, **named: make_launch(STEP, *given, **named))
    replace(machine.device, lambda: CPU)
    replace(machine.hardware, lambda: SimpleNamespace(bandwidth=1.0, flops=1.0))
    replace(machine.microseconds, lambda operation: float(operation() is not None))
    replace(machine.relative_error, lambda _found, _wanted: 0.0)
    replace(reference.paged_attention, lambda query, *_others: query)
    check_kernels.NUM_ROWS = time_kernels.NUM_ROWS = 3
    time_kernels.SAMPLED_ROWS, time_kernels.PROMPT = (2,), 1


def main() -> None:
    scratch = Path(sys.argv[1])
    make_library(scratch)
    pretend(scratch)
    JITFunction._do_compile = do_compile
    for name, launch in launches.launches().items():
        if not name.startswith("engine"):
            launch(CPU)
    assert asked
    asked.clear()
    make_small()
    for part in (check_kernels, time_kernels):
        for case in part.cases():
            list(case.measure())
    sys.stdout.writelines(f"{kernel}\n" for kernel in asked)


if __name__ == "__main__":
    main()
