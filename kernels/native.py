"""Compiles the C++ kernels in `cpu/` at first use and loads them.

The library is kept in the cache folder under a name made of the sources, the flags and the
compiler, so that a change of any of them builds anew. It is compiled beside that name and moved
there when complete: processes that build at once do the same work twice, and never see half a file.
Where it cannot be had, `library()` is None and callers take their torch variant.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from trunkline.kernels.cpu_isa import VARIABLE, CpuIsa, has_avx512_bf16, max_cpu_isa

SOURCE_FOLDER = Path(__file__).parent / "cpu"
CACHE_VARIABLE = "TRUNKLINE_CACHE_DIR"
DEFAULT_CACHE = "~/.cache/trunkline"
COMPILERS = ("c++", "g++", "clang++")
# The instruction sets are named, not "native": a cache folder may be shared between machines.
FLAGS = (
    "-std=c++20",
    "-O3",
    "-fno-strict-aliasing",  # bfloat16 pairs are read as 32-bit words
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mavx512bf16",
    "-mfma",
    "-pthread",
    "-fPIC",
    "-shared",
)

Argument = Tensor | ctypes.Structure | int | float | None
CType = type[ctypes.c_int64] | type[ctypes.c_double] | type[ctypes.c_void_p]

SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

logger = logging.getLogger(__name__)


class NativeUnavailableError(RuntimeError):
    """The kernels cannot be built or run on this machine."""


class NativeLibrary:
    """The compiled kernels."""

    def __init__(self, path: Path) -> None:
        self._loaded = ctypes.CDLL(str(path))
        self._functions: dict[tuple[str, torch.dtype], Callable[..., object]] = {}

    def call(
        self,
        operation: str,
        dtype: torch.dtype,
        *arguments: Argument,
    ) -> None:
        """Call `trunkline_<operation>_<dtype>`.

        Args:
            operation: the function's name.
            dtype: of the elements; one of SUFFIXES.
            arguments: in the function's order and of the same kinds in every call. Tensors and
                structures are passed by address and must be contiguous; None is no tensor;
                integers are 64 bits wide.
        """
        function = self._functions.get((operation, dtype))
        if function is None:
            # Told once what it takes, ctypes converts arguments several times as fast.
            function = self._loaded[f"trunkline_{operation}_{SUFFIXES[dtype]}"]
            function.argtypes = [_c_type(argument) for argument in arguments]
            function.restype = None
            self._functions[operation, dtype] = function
        function(*map(_as_c, arguments))


def _c_type(argument: Argument) -> CType:
    if isinstance(argument, int):
        return ctypes.c_int64
    return ctypes.c_double if isinstance(argument, float) else ctypes.c_void_p


def _as_c(argument: Argument) -> int | float | None:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if isinstance(argument, ctypes.Structure):
        return ctypes.addressof(argument)
    return argument


def cache_dir() -> Path:
    """The folder for all that is made once and kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE).expanduser()


def native_for(tensor: Tensor) -> NativeLibrary | None:
    """The kernels, if they take tensors of this device and dtype."""
    if tensor.device.type != "cpu" or tensor.dtype not in SUFFIXES:
        return None
    return library()


@functools.cache
def library() -> NativeLibrary | None:
    """The compiled kernels, or None where they cannot be had; the reason is logged once."""
    try:
        return build(cache_dir() / "kernels")
    except NativeUnavailableError as error:
        logger.warning("CPU kernels in plain PyTorch, which is slower: %s", error)
        return None


def build(folder: Path) -> NativeLibrary:
    """Load the library from `folder`, compiled there first unless it is there already.

    Raises:
        NativeUnavailableError: the CPU lacks instructions, there is no compiler, or it fails.
    """
    if max_cpu_isa() < CpuIsa.AVX512_BF16:
        raise NativeUnavailableError(f"{VARIABLE} allows no AVX512-BF16 instructions")
    if not has_avx512_bf16():
        raise NativeUnavailableError("the CPU has no AVX512-BF16 instructions")
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NativeUnavailableError(f"no C++ compiler is installed ({', '.join(COMPILERS)})")
    try:
        path = folder / f"cpu-{_digest(compiler)}.so"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(compiler, path)
        return NativeLibrary(path)
    except OSError as error:
        raise NativeUnavailableError(str(error)) from error


def _sources() -> list[Path]:
    return sorted(SOURCE_FOLDER.glob("*.cpp"))


def _digest(compiler: str) -> str:
    """Of all that the library follows from."""
    status = Path(compiler).resolve().stat()
    parts = [compiler, str(status.st_size), str(status.st_mtime_ns), *FLAGS]
    digest = hashlib.sha256("\0".join(parts).encode())
    for path in sorted([*_sources(), *SOURCE_FOLDER.glob("*.h")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as scratch:
        target = Path(scratch) / path.name
        command = [compiler, *FLAGS, *map(str, _sources()), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NativeUnavailableError(f"{compiler} failed: {done.stderr[-500:]}")
        target.replace(path)
