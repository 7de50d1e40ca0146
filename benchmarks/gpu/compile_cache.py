"""Triton's folder of compiled kernels: what is found in it, and how it is taken to another machine.

A compiled kernel is filed under a hash of its source (the line where it begins included), of the
types and the specialisation of its arguments, of Triton's own files and of its assembler. It is
found again on any machine on which these are equal, if `use_cache` has been called there.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import cache as triton_cache

MANIFEST = "manifest.json"
MOST_NAMES = 6  # of kernels that were not found
KEPT_SUFFIXES = (".cubin", ".json")
# Of compute capability 9.0, as an H100 and an H200 are.
HOPPER = GPUTarget("cuda", 90, 32)


class CacheListener:
    """Counts what Triton found in its folder, and what it had to compile, while it is installed.

    A process asks the folder once for each kernel and specialisation; later launches are not
    counted.
    """

    def __init__(self) -> None:
        self.hits: dict[str, str] = {}  # hash -> what it is
        self.misses: dict[str, str] = {}

    def install(self) -> CacheListener:
        """Have Triton call this, in place of what it called before."""
        knobs.compilation.listener = self
        return self

    def __call__(
        self, *, src: Any, metadata: dict[str, Any], cache_hit: bool, **_others: object
    ) -> None:
        """See `triton.knobs.CompilationListener`."""
        found = self.hits if cache_hit else self.misses
        found[metadata["hash"]] = describe(src, metadata["name"])

    def __str__(self) -> str:
        names = sorted(self.misses.values())
        more = len(names) - MOST_NAMES
        names = names[:MOST_NAMES] + ([f"and {more} more"] if more > 0 else [])
        return (
            f"{len(self.hits) + len(self.misses)} kernels, {len(self.misses)} not in the cache"
            + f": {'; '.join(names)}" * bool(names)
        )


def describe(src: Any, name: str) -> str:
    """A kernel's name, with the types of its pointers, and its integers that are fixed."""
    types = [kind for kind in src.signature.values() if isinstance(kind, str)]
    pointers = dict.fromkeys(kind[1:] for kind in types if kind.startswith("*"))
    constants = {
        src.fn.arg_names[path[0]]: value
        for path, value in src.constants.items()
        if len(path) == 1 and isinstance(value, int)
    }
    divisible = sum(1 for kind in src.attrs.values() if kind)
    parts = [*pointers, *(f"{key}={value}" for key, value in constants.items())]
    return f"{name}({', '.join(parts)}; {divisible} arguments divisible by 16)"


def point_at(folder: Path) -> None:
    """Have Triton look in `folder`, in this process and in those that it starts from now on."""
    folder = folder.resolve()
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    relocate(folder)


def use_cache(folder: Path) -> list[str]:
    """Have Triton look in `folder`, which was filled elsewhere, see `fill_cache`.

    Returns:
        In what this machine differs from that which filled the folder, one sentence each.
    """
    point_at(folder)
    file = folder / MANIFEST
    if not file.exists():
        return [f"{folder} was not filled: it has no {MANIFEST}"]
    filled, here = json.loads(file.read_text(encoding="utf-8")), manifest()
    notes = [
        f"the kernels were compiled with {name} {filled[name]}, here is {here[name]}"
        for name in ("triton", "compiler")
        if filled[name] != here[name]
    ]
    if not notes and filled["triton_key"] != here["triton_key"]:
        # Of one version there are builds whose files differ. What they compile runs alike.
        triton_cache.triton_key = lambda: filled["triton_key"]
        notes.append("another build of the same Triton: this process files kernels as its own")
    return notes


def relocate(folder: Path) -> None:
    """Correct the paths in a folder that has been moved: Triton has written them down in full."""
    for file in folder.glob("*/__grp__*.json"):
        group = json.loads(file.read_text(encoding="utf-8"))
        children = {name: str(file.parent / name) for name in group["child_paths"]}
        if children != group["child_paths"]:
            file.write_text(json.dumps({"child_paths": children}), encoding="utf-8")


def remove_others(folder: Path, hashes: Collection[str]) -> int:
    """Delete the compiled kernels that are not among `hashes`; how many they were."""
    # Named as Triton names them.
    kept = {base64.b32encode(bytes.fromhex(each)).decode().rstrip("=") for each in hashes}
    found = {file.parent for file in folder.glob("*/__grp__*.json")}
    others = [entry for entry in found if entry.name not in kept]
    for entry in others:
        shutil.rmtree(entry)
    return len(others)


def trim(folder: Path) -> None:
    """Delete what no launch reads: of a kernel, all but its binary and what describes it."""
    for file in folder.glob("*/__grp__*.json"):
        group = json.loads(file.read_text(encoding="utf-8"))["child_paths"]
        kept = {name: path for name, path in group.items() if Path(name).suffix in KEPT_SUFFIXES}
        if kept != group:
            file.write_text(json.dumps({"child_paths": kept}), encoding="utf-8")
            for name in group.keys() - kept.keys():
                (file.parent / name).unlink()


def manifest() -> dict[str, str]:
    """Versions, settings and the key that compiled kernels depend on, beside their source."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "compiler": make_backend(HOPPER).hash(),
        "triton_key": triton_cache.triton_key(),
    }


def write_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest(), indent=1) + "\n", encoding="utf-8")


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
