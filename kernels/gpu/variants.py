"""Every variant of every kernel that can be asked for."""

from __future__ import annotations

import importlib

from trunkline.kernels.gpu.variant import Variant

# Modules with a function `variants`.
MODULES = [
    "add_rms_norm",
    "attention_variants",
    "merge",
    "rope_and_cache",
    "sampling",
    "silu_mul",
    "token_masks",
]


def all_variants() -> list[Variant]:
    """The variants of all kernels; their names differ."""
    found: list[Variant] = []
    for name in MODULES:
        found += importlib.import_module(f"trunkline.kernels.gpu.{name}").variants()
    return found
