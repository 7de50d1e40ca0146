"""What the CPU benchmarks do alike: the model, the equality check, the contestants, the rows."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.contestant import BENCHMARKS, RUN_SECONDS, SOURCES, Contestant
from harness.duel import Entry, Setup, duel, missing_row
from harness.engine_run import SETTINGS
from harness.environments import CPU_PEERS, PEERS, PeerUnavailableError, cache_folder, python_of
from harness.rows import Row, cpu_name, write_rows
from harness.sizes import Size
from harness.tables import print_rows
from peers.protocol import Options
from trunkline.engine.calibration import shape_of
from trunkline.engine.default_model import resolve_model
from trunkline.engine.model.config import load_config
from trunkline.engine.model.weights import resolve_dtype
from trunkline.store.model_names import DEFAULT_MODEL

OURS = "trunkline"
KV_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Call:
    """What the command line asked for."""

    part: str
    sizes: list[Size]
    repeat: int
    settings: tuple[str, ...]  # of our own engine
    peers: tuple[str, ...]
    environments: Mapping[str, Path]  # of peers, given instead of made
    rows: Path | None
    threads: int
    run_seconds: float  # an engine that takes longer for a workload is given up
    is_trial: bool


def parse_call(
    part: str, description: str, sizes: Mapping[str, Size], peers: str, settings: str
) -> Call:
    """Read the command line.

    Args:
        part: the benchmark's name in the rows.
        description: its first line is shown by --help.
        sizes: the workloads to choose from.
        peers: default of --peers.
        settings: default of --settings.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--workloads", default=",".join(sizes), help="which, with commas")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each engine")
    parser.add_argument(
        "--settings", default=settings, help=f"of our own engine: some of {', '.join(SETTINGS)}"
    )
    parser.add_argument(
        "--peers",
        nargs="?",
        default=peers,
        const=",".join(CPU_PEERS),
        help=f"other engines, with commas; without a value all: {', '.join(CPU_PEERS)}",
    )
    parser.add_argument(
        "--peer-venv",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a virtual environment that has the peer, instead of one made for it",
    )
    parser.add_argument("--rows", type=Path, help="write the rows to this JSONL file")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--run-seconds",
        type=float,
        default=RUN_SECONDS,
        help="an engine that takes longer for a workload is given up",
    )
    parser.add_argument(
        "--trial", action="store_true", help="small sizes and no check: does it all work?"
    )
    given = parser.parse_args()
    venvs = [value.partition("=") for value in given.peer_venv]
    names = _chosen(parser, "workloads", given.workloads, sizes)
    chosen = Call(
        part=part,
        sizes=[sizes[name].shrunk() if given.trial else sizes[name] for name in names],
        repeat=given.repeat,
        settings=_chosen(parser, "settings", given.settings, SETTINGS),
        peers=_chosen(parser, "peers", given.peers, PEERS),
        environments={name: Path(folder) for name, _, folder in venvs},
        rows=given.rows,
        threads=given.threads,
        run_seconds=given.run_seconds,
        is_trial=given.trial,
    )
    unknown = set(chosen.environments) - set(PEERS)
    if unknown:
        parser.error(f"--peer-venv names {', '.join(unknown)}; allowed are {', '.join(PEERS)}")
    if next(iter(SETTINGS)) not in chosen.settings:
        parser.error(f"--settings lacks {next(iter(SETTINGS))!r}, which the ratios refer to")
    if chosen.is_trial and chosen.rows is not None:
        parser.error("--rows is for what counts: leave out --trial")
    return chosen


def run_call(call: Call) -> list[Row]:
    """Check, measure, print; the rows are written where the call wants them."""
    # Ended from outside, it still ends the contestants.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    folder = resolve_model(DEFAULT_MODEL, cache_folder())
    if not call.is_trial:
        _check_equality(folder)
    dtype = str(resolve_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    options = Options(folder, dtype, call.threads, KV_BYTES, is_dummy=False)
    shape = shape_of(load_config(folder))
    device = cpu_name(call.threads)
    setup = Setup(call.part, "SmolLM2-135M-Instruct", dtype, device, shape)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = Contestant(
            OURS,
            Path(sys.executable),
            BENCHMARKS / "engine_program.py",
            options,
            scratch / f"{OURS}.log",
            import_paths=(SOURCES, BENCHMARKS),
            run_seconds=call.run_seconds,
        )
        stack.enter_context(ours)
        entries = [
            Entry(f"{OURS} {label}", ours, {"setting": label}, takes_kv_limit=True)
            for label in SETTINGS
            if label in call.settings
        ]
        missing: dict[str, str] = {}
        for name in call.peers:
            try:
                peer = _start(name, call, options, scratch)
            except PeerUnavailableError as error:
                missing[name] = str(error)
                print(f"not measured: {error}", file=sys.stderr)
                continue
            entries.append(Entry(name, stack.enter_context(peer)))
        rows = duel(setup, call.sizes, entries, call.repeat, scratch)
    for size in call.sizes:
        rows += [missing_row(setup, size, name, why) for name, why in missing.items()]
    rows.sort(key=lambda row: [size.workload for size in call.sizes].index(row.workload))
    print_rows(rows)
    if call.rows is not None:
        write_rows(call.rows, rows)
    return rows


def _check_equality(folder: Path) -> None:
    program = BENCHMARKS / "equality.py"
    paths = os.pathsep.join(map(str, (SOURCES, BENCHMARKS)))
    done = subprocess.run(
        [sys.executable, str(program), "--model", str(folder)],
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    if done.returncode:
        sys.exit("the outputs are not right; nothing is timed")


def _start(name: str, call: Call, options: Options, scratch: Path) -> Contestant:
    peer = PEERS[name]
    python = python_of(peer, call.environments.get(name))
    return Contestant(
        *(name, python, peer.program, options, scratch / f"{name}.log", peer.environment),
        run_seconds=call.run_seconds,
    )


def _chosen(
    parser: argparse.ArgumentParser, option: str, given: str, allowed: Mapping[str, object]
) -> tuple[str, ...]:
    names = tuple(name for name in given.split(",") if name)
    unknown = set(names) - set(allowed)
    if unknown:
        parser.error(f"--{option} has {', '.join(unknown)}; allowed are {', '.join(allowed)}")
    return names
