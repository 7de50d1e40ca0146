"""A GPU that is not there: Triton compiles and stores for it, and launches nothing.

`pretend` changes this process for good: kernels take tensors of the CPU and leave their results as
they were allocated, while every launch is compiled as on the GPU, from the same arguments.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import build, driver
from triton.runtime.cache import get_cache_manager

from gpu.compile_cache import HOPPER
from trunkline.kernels import native
from trunkline.kernels.gpu import launch

# Of an H100 and an H200.
NUM_PROCESSORS = 132
SHARED_BYTES = 227 * 1024
MAX_THREADS = 1024
# What Triton links the C with that it compiles for each signature; later versions compile none.
LIBRARY = "libcuda.so.1"
COMPILES_LAUNCHERS = hasattr(nvidia, "make_launcher")


class AbsentGpu(nvidia.CudaDriver):
    """Triton's view of the device."""

    def __init__(self) -> None:
        """In place of the parent's, which asks the device."""
        self.utils = _Utilities()
        self.launcher_cls = _Launcher

    def get_current_target(self) -> GPUTarget:
        return HOPPER

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class _Utilities:
    """Loads nothing."""

    def get_device_properties(self, _device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES}

    def load_binary(self, *_arguments: object) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills, and the most threads of a program."""
        return 1, 1, 0, 0, MAX_THREADS

    def unload_module(self, _module: int) -> None:
        """There is none."""


class _Launcher:
    """Stores what a launch of the kernel is compiled to, and launches nothing."""

    def __init__(self, src: Any, metadata: Any) -> None:
        if COMPILES_LAUNCHERS:
            constants = {
                (src.fn.arg_names.index(key),) if isinstance(key, str) else key: value
                for key, value in src.constants.items()
            }
            descriptors = getattr(metadata, "tensordesc_meta", None)
            source = nvidia.make_launcher(constants, dict(src.signature), descriptors)
            _store_module(source, "__triton_launcher")

    def __call__(self, *_arguments: object) -> None:
        """Of a launch."""


def pretend(libraries: Path) -> None:
    """Have a GPU in this process that is not there.

    Args:
        libraries: a folder made by `make_library`.
    """
    if COMPILES_LAUNCHERS:
        knobs.nvidia.libcuda_path = str(libraries)
        source = Path(nvidia.dirname, "driver.c").read_text(encoding="utf-8")
        _store_module(source, "cuda_utils")
    driver.set_active(AbsentGpu())
    launch.is_interpreted = lambda: True  # type: ignore[assignment]  # tensors of the CPU are taken
    replace(launch.architecture, lambda _device: "sm_90")
    replace(launch.num_processors, lambda _device: NUM_PROCESSORS)
    native.library = lambda: None  # the GPU has none of these, and silu_mul is launched by itself
    torch.nn.functional.linear = _linear


def _linear(x: Tensor, weight: Tensor, _bias: Tensor | None = None) -> Tensor:
    """Zeros in the shape of the product, for which a CPU takes long. No launch depends on it."""
    return x.new_zeros(*x.shape[:-1], len(weight))


def replace(function: Callable[..., object], other: Callable[..., object]) -> None:
    """Put another function in the place of one, also in the modules that have imported it."""
    name = function.__name__
    for module in list(sys.modules.values()):
        if vars(module).get(name) is function:
            setattr(module, name, other)


def make_library(folder: Path) -> None:
    """Put a library into `folder` that has the name of the GPU's, to link with, and no content."""
    if not COMPILES_LAUNCHERS:
        return
    target = folder / LIBRARY
    command = ["gcc", "-shared", "-x", "c", "/dev/null", f"-Wl,-soname,{LIBRARY}", "-o", target]
    subprocess.run(command, check=True)


def _store_module(source: str, name: str) -> None:
    """Compile an extension of Python as Triton would, unless it is stored."""
    key = hashlib.sha256((source + build.platform_key()).encode()).hexdigest()
    if get_cache_manager(key).get_file(f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"):
        return
    # Stored, and then not loaded: it calls what only a GPU's library has.
    with contextlib.suppress(ImportError):
        build.compile_module_from_src(
            src=source,
            name=name,
            library_dirs=nvidia.library_dirs(),
            include_dirs=nvidia.include_dirs,
            libraries=[],
            # Else the linker leaves the library out, of which it sees no use.
            ccflags=["-Wl,--no-as-needed", f"-l:{LIBRARY}"],
        )
