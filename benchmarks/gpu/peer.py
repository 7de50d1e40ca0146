"""Part `peer`: beside vLLM, where it is installed, in turn on the same GPU, equal work."""

from __future__ import annotations

import importlib.util
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from gpu.machine import IS_TOY, device, device_name, dtype, dtype_name
from gpu.models import shapes
from gpu.parts import Case, Record
from harness.contestant import BENCHMARKS, SOURCES, Contestant
from harness.duel import Entry, Setup, duel, missing_row
from harness.environments import PEERS, PeerUnavailableError
from harness.rows import as_record
from harness.sizes import TOY_SIZES, Size
from peers.protocol import Options
from trunkline.engine.calibration import shape_of
from trunkline.engine.model.config import config_from_hf
from trunkline.engine.simulation.simulate import PLANNED

KV_BYTES = 2**20 if IS_TOY else 40 * 2**30
REPEAT = 1 if IS_TOY else 3
PEER = PEERS["vllm_gpu"]
SIZES = [TOY_SIZES["W1-4"]] if IS_TOY else [Size("W1-16", 640), Size("W9", 640)]


def start_peer(options: Options, scratch: Path) -> Contestant:
    """vLLM, ready.

    Raises:
        PeerUnavailableError: it is not installed, or does not start.
    """
    if importlib.util.find_spec("vllm") is None:
        raise PeerUnavailableError("vLLM is not installed in this environment")
    python, log = Path(sys.executable), scratch / "vllm.log"
    return Contestant(PEER.name, python, PEER.program, options, log, PEER.environment)


def measure(
    setup: Setup, size: Size, entries: list[Entry], scratch: Path, reason: str
) -> Iterator[Record]:
    """All entries on a workload; `reason`: why the peer is not among them, or nothing."""
    yield from map(as_record, duel(setup, [size], entries, REPEAT, scratch))
    if reason:
        yield as_record(missing_row(setup, size, PEER.name, reason))


def cases() -> Iterator[Case]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("out of time"))  # ends the contestants too
    device()
    name, config = next(iter(shapes().items()))
    kind = dtype_name(dtype())
    setup = Setup("gpu-peer", name, kind, device_name(), shape_of(config_from_hf(config)))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config.save_pretrained(scratch)
        options = Options(scratch, kind, 1, KV_BYTES, is_dummy=True)
        ours = stack.enter_context(
            Contestant(
                "trunkline",
                Path(sys.executable),
                BENCHMARKS / "engine_program.py",
                options,
                scratch / "trunkline.log",
                import_paths=(SOURCES, BENCHMARKS, *map(Path, sys.path)),
            )
        )
        entries = [Entry(f"trunkline {PLANNED.label}", ours, {"setting": PLANNED.label})]
        reason = ""
        try:
            entries.append(Entry(PEER.name, stack.enter_context(start_peer(options, scratch))))
        except PeerUnavailableError as error:
            reason = str(error)
        for size in SIZES:
            yield Case(size.workload, partial(measure, setup, size, entries, scratch, reason))


def line(record: Record) -> str:
    name = f"{record['workload']}, {record['engine']}"
    if "not_measured" in record:
        return f"not measured: {name}: {record['not_measured']}"
    return f"{record['median_seconds']:8.2f} s  {name}"
