"""Part `peer`: beside vLLM, where it is installed, one after the other on the same GPU, equal work.

Both have a cache of the same size, and the device to themselves: ours answers every workload, its
process ends, and only then vLLM's begins. vLLM is looked for in the folder that PEER_PACKAGES
names, see `gpu/join_peer.sh`, or else among this interpreter's packages.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from gpu.engines import KV_SHARE, TOY_KV_BYTES
from gpu.machine import IS_TOY, device, device_name, dtype, dtype_name
from gpu.models import shapes
from gpu.parts import Case, Record
from gpu.results import results_file
from harness.contestant import BENCHMARKS, SOURCES, Contestant
from harness.duel import Entry, Setup, Succession, missing_row
from harness.environments import PEERS, PeerUnavailableError
from harness.rows import as_record
from harness.sizes import TOY_SIZES, Size
from peers.protocol import Options
from trunkline.engine.calibration import shape_of
from trunkline.engine.model.config import config_from_hf
from trunkline.engine.simulation.hardware import ModelShape
from trunkline.engine.simulation.simulate import PLANNED

REPEAT = 1 if IS_TOY else 3
PEER = PEERS["vllm_gpu"]
SIZES = [TOY_SIZES["W1-4"]] if IS_TOY else [Size("W1-16", 640), Size("W1-64", 640), Size("W9", 320)]


def kv_bytes(shape: ModelShape) -> int:
    """For the cache of either: of the memory that weights leave, as in the part end-to-end."""
    if IS_TOY:
        return TOY_KV_BYTES
    free, _ = torch.cuda.mem_get_info(device())
    return int(KV_SHARE * (free - shape.weight_bytes))


def start_own(options: Options, scratch: Path) -> Contestant:
    """Our engine, ready."""
    return Contestant(
        "trunkline",
        Path(sys.executable),
        BENCHMARKS / "engine_program.py",
        options,
        scratch / "trunkline.log",
        import_paths=(SOURCES, BENCHMARKS, *map(Path, sys.path)),
    )


def start_peer(options: Options, scratch: Path) -> Contestant:
    """vLLM, ready.

    Raises:
        PeerUnavailableError: it is not installed, or does not start.
    """
    packages = os.environ.get("PEER_PACKAGES")
    if packages is not None and not Path(packages, "vllm").is_dir():
        raise PeerUnavailableError(f"there is no vLLM in {packages}")
    if packages is None and importlib.util.find_spec("vllm") is None:
        raise PeerUnavailableError("vLLM is not installed in this environment")
    return Contestant(
        PEER.name,
        Path(sys.executable),
        PEER.program,
        options,
        results_file("peer").with_name("vllm.log"),  # to see why it did not start
        # The folder of our own kernels is not for others.
        {**PEER.environment, "TRITON_CACHE_DIR": str(scratch / "vllm-triton")},
        import_paths=(BENCHMARKS, *([] if packages is None else [Path(packages)])),
    )


def measure(succession: Succession, size: Size, entry: Entry) -> Iterator[Record]:
    yield as_record(succession.run(size, entry))


def measure_peer(
    setup: Setup, succession: Succession, size: Size, entry: Entry
) -> Iterator[Record]:
    try:
        yield from measure(succession, size, entry)
    except PeerUnavailableError as error:
        yield from note_missing(setup, size, str(error))


def note_missing(setup: Setup, size: Size, reason: str) -> Iterator[Record]:
    yield as_record(missing_row(setup, size, PEER.name, reason))


def cases() -> Iterator[Case]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("out of time"))  # ends the contestants too
    device()
    name, config = next(iter(shapes().items()))
    kind = dtype_name(dtype())
    shape = shape_of(config_from_hf(config))
    setup = Setup("gpu-peer", name, kind, device_name(), shape)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        config.save_pretrained(scratch)
        options = Options(scratch, kind, 1, kv_bytes(shape), is_dummy=True)
        succession = Succession(setup, REPEAT, scratch)
        with start_own(options, scratch) as ours:
            entry = Entry(f"trunkline {PLANNED.label}", ours, {"setting": PLANNED.label})
            for size in SIZES:
                yield Case(f"{size.workload}, trunkline", partial(measure, succession, size, entry))
        with ExitStack() as stack:
            try:
                peer = Entry(PEER.name, stack.enter_context(start_peer(options, scratch)))
                measurement = partial(measure_peer, setup, succession, entry=peer)
            except PeerUnavailableError as error:
                measurement = partial(note_missing, setup, reason=str(error))
            for size in SIZES:
                yield Case(f"{size.workload}, {PEER.name}", partial(measurement, size=size))


def line(record: Record) -> str:
    name = f"{record['workload']}, {record['engine']}"
    if "not_measured" in record:
        return f"not measured: {name}: {record['not_measured']}"
    return f"{record['median_seconds']:8.2f} s  {name}"
