"""Compiles kernels for GPUs that need not be there, and says what they take of the device.

`python -m trunkline.kernels.gpu.ahead` compiles every variant for every target and prints one JSON
object a line. Two processes share the work.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trunkline.kernels.gpu.variant import Variant
from trunkline.kernels.gpu.variants import all_variants

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes of shared memory that a program may take. The smallest of compute capability 8.x, not 8.0's.
SHARED_LIMITS = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
NUM_PROCESSES = 2


@dataclass(frozen=True)
class Resources:
    """What a compiled variant takes."""

    variant: str
    target: str
    num_registers: int  # of a thread
    spilled_bytes: int  # of a thread's registers, in memory
    shared_bytes: int  # of a program
    uses_wgmma: bool  # Hopper's matrix instructions


def compile_variant(variant: Variant, target: str) -> Resources:
    """Compile for one of TARGETS.

    Raises:
        triton.CompilationError: the kernel is wrong, or cannot be had for the target.
    """
    signature, attributes = {}, {}
    for index, argument in enumerate(variant.kernel.arg_names):
        if argument in variant.constexprs:
            signature[argument] = "constexpr"
            continue
        kind, _, divisor = variant.signature[argument].partition(":")
        signature[argument] = kind
        if kind.startswith("*") or divisor:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        variant.kernel, signature, constexprs=dict(variant.constexprs), attrs=attributes
    )
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "enable_fp_fusion": True,
    }
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    is_cuda = TARGETS[target].backend == "cuda"
    num_registers, spilled_bytes = (_cuda_registers if is_cuda else _hip_registers)(compiled)
    return Resources(
        variant=variant.name,
        target=target,
        num_registers=num_registers,
        spilled_bytes=spilled_bytes,
        shared_bytes=compiled.metadata.shared,
        uses_wgmma=is_cuda and "wgmma.mma_async" in compiled.asm["ptx"],
    )


def _cuda_registers(compiled: Any) -> tuple[int, int]:
    """Registers and bytes of stack of the hungriest function."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(folder / "cuobjdump"), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+)", usage)
    return max(int(registers) for registers, _ in found), max(int(stack) for _, stack in found)


def _hip_registers(compiled: Any) -> tuple[int, int]:
    """Vector registers and bytes of scratch memory."""
    assembly = compiled.asm["amdgcn"]

    def entry(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        if found is None:
            raise ValueError(f"the compiler's output has no {name}")
        return int(found[1])

    spilled_bytes = entry("private_segment_fixed_size") + 4 * entry("vgpr_spill_count")
    return entry("vgpr_count"), spilled_bytes


def _compile_by_name(name: str, target: str) -> Resources:
    found = {variant.name: variant for variant in all_variants()}
    return compile_variant(found[name], target)


def compile_all(pairs: Iterable[tuple[str, str]]) -> Iterable[Resources]:
    """Compile (name of a variant, target)."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(NUM_PROCESSES, mp_context=context) as pool:
        yield from pool.map(_compile_by_name, *zip(*pairs, strict=True))


def all_pairs() -> list[tuple[str, str]]:
    """Each variant with each target that it is for."""
    return [
        (variant.name, target)
        for variant in all_variants()
        for target in variant.targets or TARGETS
    ]


if __name__ == "__main__":
    for resources in compile_all(all_pairs()):
        sys.stdout.write(json.dumps(asdict(resources)) + "\n")
        sys.stdout.flush()
