"""A kernel with everything that is fixed when it is compiled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """What `ahead.py` compiles where no GPU is.

    A type in the signature is written as Triton writes it, ``"*bf16"`` or ``"i32"``; an integer
    known to be divisible by 16 as ``"i64:16"``. Pointers always are. Arguments with a fixed value
    stand in `constexprs` alone.
    """

    name: str
    kernel: Any  # a function decorated with triton.jit
    signature: dict[str, str]  # argument -> type, in the order of the arguments
    constexprs: dict[str, object] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    # Targets that it is for, as `ahead.TARGETS` names them; None: all.
    targets: tuple[str, ...] | None = None
