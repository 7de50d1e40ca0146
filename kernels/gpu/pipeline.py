"""How far a compiled attention kernel's loads run ahead of its products, from the compiler's IR.

A loop over blocks of keys overlaps with its own loads only where the compiler gave a block's keys
and values a second place to be loaded to while the first is computed with. Registers and spills say
nothing about that; the pipelined IR does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LOOP = re.compile(r"^(\s*).*\bscf\.for\b")
# [buffers, keys, dimensions], filled again and again.
_BUFFERS = re.compile(r"ttg\.local_alloc : \(\) -> !ttg\.memdesc<(\d+)x\d+x\d+x\w+,.*\bmutable>")
_PRODUCT = re.compile(r"\btt\.dot\b|\bttng\.warp_group_dot\b")
_WAIT = re.compile(r"\bttg\.async_wait\b.*\{num = (\d+)")
# Where there are no asynchronous copies (AMD), a block waits in registers until its place is free.
_STORE = re.compile(r"\bttg\.local_store\b")


@dataclass(frozen=True)
class Pipeline:
    """Of the loop over those blocks of keys that every line of a tile sees."""

    buffers: int  # blocks that are loaded or computed with at a time; 1: nothing overlaps
    waits: int | None  # copies under way while a block is computed; None: none are asynchronous


@dataclass
class _Loop:
    start: int
    indent: int
    allocated: list[int]  # buffers of the allocations before it, since the loop before
    end: int = 0
    has_inner: bool = False


def read_pipelines(ttgir: str) -> tuple[Pipeline, ...]:
    """The pipelines of a compiled attention kernel, one for each kind of tile, in their order.

    Args:
        ttgir: Triton's IR for GPUs, as it is after the pipeliner.

    Raises:
        ValueError: the loops are not those of the attention kernel: for each kind one over blocks
            without a mask, and one over the edges.
    """
    lines = ttgir.splitlines()
    loops = [loop for loop in _innermost_loops(lines) if _has_products(lines, loop)]
    if len(loops) % 2:
        raise ValueError(f"{len(loops)} loops with products, where every kind of tile has two")
    return tuple(_pipeline(lines, loop) for loop in loops[::2])


def _innermost_loops(lines: list[str]) -> Iterator[_Loop]:
    """In the order of their beginnings, which is that of their ends."""
    open_loops: list[_Loop] = []
    allocated: list[int] = []
    for at, line in enumerate(lines):
        if buffers := _BUFFERS.search(line):
            allocated.append(int(buffers[1]))
        elif loop := _LOOP.match(line):
            for outer in open_loops:
                outer.has_inner = True
            open_loops.append(_Loop(at, len(loop[1]), allocated))
            allocated = []
        elif open_loops and line.startswith(" " * open_loops[-1].indent + "}"):
            ended = open_loops.pop()
            ended.end = at
            if not ended.has_inner:
                yield ended


def _has_products(lines: list[str], loop: _Loop) -> bool:
    return any(_PRODUCT.search(line) for line in lines[loop.start : loop.end])


def _pipeline(lines: list[str], loop: _Loop) -> Pipeline:
    body = lines[loop.start : loop.end]
    waits = [int(found[1]) for line in body if (found := _WAIT.search(line))]
    is_kept_in_registers = any(_STORE.search(line) for line in body)
    return Pipeline(
        buffers=min(loop.allocated, default=1) + is_kept_in_registers,
        waits=min(waits) if waits else None,
    )
