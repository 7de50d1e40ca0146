"""Compiled libraries without the kernels that one kind of GPU cannot run.

nvcc leaves the kernels of a source file in a container, once for every kind of GPU asked for.
A library for eight kinds becomes one for a single kind by leaving the rest out of its containers.
Each begins where it began, and what it no longer takes up is zeros, so that no address changes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

HOPPER = 90
# Of a container: the magic number, its version, the bytes of this header, those of the entries.
CONTAINER = struct.Struct("<IHHQ")
MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, CONTAINER.size)
# Of an entry: its kind, a version, the bytes of its header, those of what follows it, then, after
# sixteen bytes that say nothing here, the GPU's number.
ENTRY = struct.Struct("<HHIQ12xI")
SOURCE, BINARY = 1, 2  # PTX, which the driver compiles for later GPUs, and machine code


@dataclass(frozen=True)
class Entry:
    """The kernels of one container for one GPU.

    Attributes:
        gpu: the number of its architecture, 90 for a Hopper GPU.
        content: with its header.
    """

    kind: int
    gpu: int
    content: bytes


def for_gpu(library: bytes, gpu: int = HOPPER) -> bytes:
    """The library with the kernels for `gpu` alone; of the same size.

    A container that has no machine code for it keeps the latest source that the driver can compile
    for it, and one that has neither keeps its smallest entry, which nothing can load there.
    """
    pieces = []
    after = 0
    for start, end, entries in containers(library):
        kept = b"".join(entry.content for entry in wanted(entries, gpu))
        header = MAGIC + struct.pack("<Q", len(kept))
        padding = end - start - len(header) - len(kept)
        pieces += [library[after:start], header, kept, bytes(padding)]
        after = end
    return b"".join([*pieces, library[after:]])


def wanted(entries: list[Entry], gpu: int) -> list[Entry]:
    """See `for_gpu`."""
    binaries = [entry for entry in entries if (entry.kind, entry.gpu) == (BINARY, gpu)]
    sources = [entry for entry in entries if entry.kind == SOURCE and entry.gpu <= gpu]
    if binaries:
        return binaries
    if sources:
        return [max(sources, key=lambda entry: entry.gpu)]
    return sorted(entries, key=lambda entry: len(entry.content))[:1]


def containers(library: bytes) -> Iterator[tuple[int, int, list[Entry]]]:
    """(start, end, entries) of each container; bytes."""
    start = library.find(MAGIC)
    while 0 <= start <= len(library) - CONTAINER.size:
        *_, size = CONTAINER.unpack_from(library, start)
        end = start + CONTAINER.size + size
        entries = _entries(library, start + CONTAINER.size, end) if end <= len(library) else None
        if entries:
            yield start, end, entries
        start = library.find(MAGIC, end if entries else start + len(MAGIC))


def _entries(library: bytes, start: int, end: int) -> list[Entry] | None:
    """None: what begins there is no container, but looks like one's header."""
    entries = []
    while start + ENTRY.size <= end:
        kind, _, header_size, size, gpu = ENTRY.unpack_from(library, start)
        following = start + header_size + size
        if kind not in (SOURCE, BINARY) or following > end or header_size < ENTRY.size:
            return None
        entries.append(Entry(kind, gpu, library[start:following]))
        start = following
    return entries if start == end else None
