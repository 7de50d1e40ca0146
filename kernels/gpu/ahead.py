"""Compiles kernels for GPUs that need not be there, and says what they take of the device.

`python -m trunkline.kernels.gpu.ahead` compiles every variant for every target and prints one JSON
object a line; `--target` and `--one-of-each-kernel` leave some out. Two processes share the work,
and what was found before is not compiled again, see `resources`.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import triton
from triton._C.libtriton import get_cache_invalidating_env_vars
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from trunkline.kernels.gpu.attention import attention_kernel
from trunkline.kernels.gpu.pipeline import read_pipelines
from trunkline.kernels.gpu.resources import Resources, cache_folder, digest_of, load, store
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
        pipelines=(
            read_pipelines(compiled.asm["ttgir"]) if variant.kernel is attention_kernel else ()
        ),
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


@functools.cache
def _compiler(target: str) -> str:
    """Names Triton, the assembler that it takes for the target, and what changes its results."""
    settings = sorted(get_cache_invalidating_env_vars().items())
    return f"{triton.__version__} {make_backend(TARGETS[target]).hash()} {settings}"


def _digest(variant: Variant, target: str) -> str:
    return digest_of(variant, target, _compiler(target))


def _compile_and_store(name: str, target: str) -> Resources:
    found = {variant.name: variant for variant in all_variants()}
    resources = compile_variant(found[name], target)
    store(cache_folder(), _digest(found[name], target), resources)
    return resources


def compile_all(pairs: Iterable[tuple[Variant, str]]) -> Iterator[Resources]:
    """Resources of each variant on its target, in the given order; compiled unless kept."""
    kept = [(*pair, load(cache_folder(), _digest(*pair))) for pair in pairs]
    missing = [(variant.name, target) for variant, target, found in kept if found is None]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(NUM_PROCESSES, mp_context=context) as pool:
        compiled = [pool.submit(_compile_and_store, *pair) for pair in missing][::-1]
        for _, _, found in kept:
            yield compiled.pop().result() if found is None else found


def all_pairs() -> list[tuple[Variant, str]]:
    """Each variant with each target that it is for."""
    return [
        (variant, target) for variant in all_variants() for target in variant.targets or TARGETS
    ]


def one_of_each_kernel(pairs: Iterable[tuple[Variant, str]]) -> list[tuple[Variant, str]]:
    """The first variant of each kernel, for each target."""
    firsts: dict[tuple[Any, str], Variant] = {}
    for variant, target in pairs:
        firsts.setdefault((variant.kernel, target), variant)
    return [(variant, target) for (_, target), variant in firsts.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=TARGETS, action="append", help="all unless given")
    parser.add_argument("--one-of-each-kernel", action="store_true", help="not every variant")
    arguments = parser.parse_args()
    pairs = [pair for pair in all_pairs() if pair[1] in (arguments.target or TARGETS)]
    if arguments.one_of_each_kernel:
        pairs = one_of_each_kernel(pairs)
    for resources in compile_all(pairs):
        sys.stdout.write(json.dumps(asdict(resources)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
