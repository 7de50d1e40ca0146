"""The registers and memory that compiled kernels take, kept from one run to the next.

Compiling all variants takes minutes. Results are kept in the cache folder, a file for each variant
and target, under a name made of all that it follows from. Files are written beside their names and
moved there when complete; one that is damaged counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from trunkline.kernels.gpu.pipeline import Pipeline
from trunkline.kernels.gpu.variant import Variant
from trunkline.kernels.native import cache_dir

# Of the kernels, their variants, and the constants that they share with others.
SOURCE_FOLDER = Path(__file__).parents[1]


@dataclass(frozen=True)
class Resources:
    """Registers, memory and pipelines of a compiled variant."""

    variant: str
    target: str
    num_registers: int  # of a thread
    spilled_bytes: int  # of a thread's registers, in memory
    shared_bytes: int  # of a program
    uses_wgmma: bool  # Hopper's matrix instructions
    pipelines: tuple[Pipeline, ...] = ()  # of the attention's kinds of tile, the largest first


def cache_folder() -> Path:
    """The folder of the kept files."""
    return cache_dir() / "gpu-resources"


def digest_of(variant: Variant, target: str, compiler: str, sources: Path = SOURCE_FOLDER) -> str:
    """Of all that a variant's resources follow from.

    Args:
        variant: what is compiled. Its kernel counts by the sources.
        target: what for.
        compiler: names the compiler, its version and its settings.
        sources: the folder of the kernels' modules; all of them count, also those in folders.
    """
    parts = [
        target,
        compiler,
        variant.name,
        *(f"{argument}: {kind}" for argument, kind in variant.signature.items()),
        *(f"{argument} = {value!r}" for argument, value in sorted(variant.constexprs.items())),
        f"{variant.num_warps} warps, {variant.num_stages} stages",
    ]
    for path in sorted(sources.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        parts += [str(path.relative_to(sources)), content]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def load(folder: Path, digest: str) -> Resources | None:
    """The resources kept under `digest`; None: there are none, or the file is damaged."""
    try:
        checksum, _, text = (folder / f"{digest}.json").read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if checksum != _checksum(text):
        return None
    found = json.loads(text)
    pipelines = tuple(Pipeline(**pipeline) for pipeline in found.pop("pipelines"))
    return Resources(**found, pipelines=pipelines)


def store(folder: Path, digest: str, resources: Resources) -> None:
    """Keep `resources` under `digest`."""
    text = json.dumps(asdict(resources)).encode()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="store-") as scratch:
        path = Path(scratch) / f"{digest}.json"
        path.write_bytes(_checksum(text) + b"\n" + text)
        path.replace(folder / path.name)


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()
