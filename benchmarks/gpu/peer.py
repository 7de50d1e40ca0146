"""Part `peer`: beside vLLM, where it is installed, in turn on the same GPU, equal work."""

from __future__ import annotations

import importlib.util
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from gpu.machine import IS_TOY, device, device_name, dtype
from gpu.models import shapes
from gpu.results import results_file
from harness.contestant import BENCHMARKS, SOURCES, Contestant
from harness.duel import Entry, Setup, duel, missing_row
from harness.environments import PEERS, PeerUnavailableError
from harness.rows import write_rows
from harness.sizes import TOY_SIZES, Size
from peers.protocol import Options
from trunkline.engine.calibration import shape_of
from trunkline.engine.model.config import config_from_hf
from trunkline.engine.simulation.simulate import PLANNED

KV_BYTES = 2**20 if IS_TOY else 40 * 2**30
REPEAT = 1 if IS_TOY else 3
PEER = PEERS["vllm_gpu"]


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("out of time"))  # ends the contestants too
    device()
    name, config = next(iter(shapes().items()))
    sizes = [TOY_SIZES["W1-4"]] if IS_TOY else [Size("W1-16", 640), Size("W9", 640)]
    kind = str(dtype()).removeprefix("torch.")
    setup = Setup("gpu-peer", name, kind, device_name(), shape_of(config_from_hf(config)))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config.save_pretrained(scratch)
        options = Options(scratch, kind, 1, KV_BYTES, is_dummy=True)
        python = Path(sys.executable)
        ours = stack.enter_context(
            Contestant(
                "trunkline",
                python,
                BENCHMARKS / "engine_program.py",
                options,
                scratch / "trunkline.log",
                import_paths=(SOURCES, BENCHMARKS, *map(Path, sys.path)),
            )
        )
        entries = [Entry(f"trunkline {PLANNED.label}", ours, {"setting": PLANNED.label})]
        reason = ""
        if importlib.util.find_spec("vllm") is None:
            reason = "vLLM is not installed in this environment"
        else:
            log = scratch / "vllm.log"
            try:
                vllm = Contestant(PEER.name, python, PEER.program, options, log, PEER.environment)
                entries.append(Entry(PEER.name, stack.enter_context(vllm)))
            except PeerUnavailableError as error:
                reason = str(error)
        rows = duel(setup, sizes, entries, REPEAT, scratch)
    if reason:
        print(f"not measured: {reason}", file=sys.stderr)
        rows += [missing_row(setup, size, PEER.name, reason) for size in sizes]
    write_rows(results_file("peer"), rows)


if __name__ == "__main__":
    main()
