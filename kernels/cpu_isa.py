"""The instruction sets of this CPU that the kernels may use.

The environment variable `TRUNKLINE_MAX_CPU_ISA` limits them, so that a machine can take the way of
one that has less: to compare results, to get around a fault, or to test.
"""

from __future__ import annotations

import os
from enum import IntEnum

import torch

VARIABLE = "TRUNKLINE_MAX_CPU_ISA"


class CpuIsa(IntEnum):
    """Instruction sets, each with all before it. The variable takes their names in lower case."""

    AVX2 = 1
    AVX512_BF16 = 2  # and AMX, where the CPU has it


def max_cpu_isa() -> CpuIsa:
    """The largest instruction set that may be used, whether or not this CPU has it.

    Raises:
        ValueError: the variable names none.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        return max(CpuIsa)
    allowed = {isa.name.lower(): isa for isa in CpuIsa}
    if given not in allowed:
        raise ValueError(f"{VARIABLE} is {given!r}; allowed are {', '.join(allowed)}")
    return allowed[given]


def has_avx512_bf16() -> bool:
    """True where kernels for AVX512-BF16 run."""
    return max_cpu_isa() >= CpuIsa.AVX512_BF16 and torch.cpu._is_avx512_bf16_supported()


def multiplies_bfloat16() -> bool:
    """True where there are instructions for bfloat16 products."""
    cpu = torch.cpu
    has_any = cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return max_cpu_isa() >= CpuIsa.AVX512_BF16 and has_any
