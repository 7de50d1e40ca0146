"""Fills a folder with the compiled kernels of all parts, on a machine without a GPU.

`python -m gpu.fill_cache FOLDER` compiles for compute capability 9.0 what `launches` names and what
the folder does not have; `use_cache` is what finds it on the GPU's machine. A kernel is found there
as long as its source is not touched and Triton is the same, see `compile_cache`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from gpu.absent_gpu import make_library, pretend
from gpu.compile_cache import (
    CacheListener,
    manifest,
    point_at,
    remove_others,
    size_of,
    trim,
    write_manifest,
)
from gpu.launches import chosen

# Of the machine that the cache is for; make_environment.sh makes the same.
VERSIONS = {"python": "3.12", "torch": "2.11.0", "triton": "3.6.0"}
NUM_PROCESSES = 2
CPU = torch.device("cpu")

# Of one launch: what was found and what was compiled, hash -> description; and seconds.
Found = tuple[dict[str, str], dict[str, str], float]


def check_versions() -> None:
    """See that what is compiled here is found there.

    Raises:
        SystemExit: it would not be.
    """
    here = manifest()
    others = [
        f"{name} {here[name]} is not {wanted}"
        for name, wanted in VERSIONS.items()
        if not here[name].startswith(wanted)
    ]
    if others:
        raise SystemExit(
            f"the GPU's machine would find nothing: {', '.join(others)}. Run this in the "
            "environment that make_environment.sh makes, or give --any-version"
        )


def _prepare(folder: Path, libraries: Path) -> None:
    point_at(folder)
    torch.set_num_threads(1)
    pretend(libraries)


def _fill(name: str) -> Found:
    """Launch what has the name."""
    started = time.perf_counter()
    listener = CacheListener().install()
    chosen([name])[name](CPU)
    return listener.hits, listener.misses, time.perf_counter() - started


def _fill_all(
    names: list[str], folder: Path, libraries: Path, num_processes: int
) -> Iterator[Found]:
    """Results of `_fill` for each name, in their order."""
    if num_processes == 1:
        _prepare(folder, libraries)
        yield from map(_fill, names)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, _prepare, (folder, libraries)) as pool:
        yield from pool.map(_fill, names)


def fill(folder: Path, names: list[str], num_processes: int) -> CacheListener:
    """Have the kernels of the named launches in `folder`.

    With one process that is this one, which has a GPU then that is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listener = CacheListener()
    with tempfile.TemporaryDirectory() as scratch:
        make_library(Path(scratch))
        for name, (hits, misses, seconds) in zip(
            names, _fill_all(names, folder, Path(scratch), num_processes), strict=True
        ):
            listener.hits |= hits
            listener.misses |= misses
            if misses:
                print(f"{seconds:6.1f} s  {name}: {len(misses)} compiled", flush=True)
    # What one process compiled and another one found was not there before.
    listener.hits = {key: hits for key, hits in listener.hits.items() if key not in listener.misses}
    trim(folder)
    write_manifest(folder)
    return listener


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    only = "launches with this text in their name; may be given again"
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help=only)
    parser.add_argument("--any-version", action="store_true", help="for whatever Triton is here")
    parser.add_argument("--processes", type=int, default=NUM_PROCESSES, metavar="N")
    arguments = parser.parse_args()
    if not arguments.any_version:
        check_versions()
    started = time.perf_counter()
    listener = fill(arguments.folder, list(chosen(arguments.only)), arguments.processes)
    print(listener)
    if not arguments.only:
        unused = remove_others(arguments.folder, {*listener.hits, *listener.misses})
        print(f"{unused} kernels deleted that no launch asks for")
    size, seconds = size_of(arguments.folder) / 2**20, time.perf_counter() - started
    print(f"{arguments.folder}: {size:.1f} MiB, filled in {seconds:.0f} s")


if __name__ == "__main__":
    main()
