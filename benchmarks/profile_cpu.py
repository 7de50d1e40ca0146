"""Where the time of the engine's steps goes on this CPU, workload by workload.

    python benchmarks/profile_cpu.py [--workloads W1,W9] [--rows FILE]

The operations of a step are timed one by one as they are called, which costs microseconds each and
is possible because on a CPU each returns when it is through.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harness.engine_run import BenchmarkEngine, Stepper, greedy_sequences, load_decoder
from harness.environments import cache_folder
from harness.rows import commit_name, cpu_name, write_records
from harness.sizes import CPU_SIZES, Size
from trunkline.engine import runner
from trunkline.engine.calibration import measure_device
from trunkline.engine.default_model import resolve_model
from trunkline.engine.model import decoder, layers
from trunkline.engine.model.weights import resolve_dtype
from trunkline.engine.runner import configure_host
from trunkline.engine.simulation.simulate import PLANNED
from trunkline.kernels.linear import GatedLinear, Linear
from trunkline.store.model_names import DEFAULT_MODEL

KV_BYTES = 2 * 2**30

# In the order of a step. "other" is what is left of it: embedding, selecting rows, calls.
PHASES = (
    *("schedule", "inputs", "linear", "attention", "small operations", "head"),
    *("sampling", "commit", "other"),
)
HOST_PHASES = ("schedule", "inputs", "commit")

# Where an operation is called from, its name there, and the phase that it belongs to.
OPERATIONS = (
    (runner, "build_inputs", "inputs"),
    (layers, "paged_attention", "attention"),
    (layers, "add_rms_norm", "small operations"),
    (layers, "rms_norm", "small operations"),
    (layers, "rope_and_cache", "small operations"),
    (decoder, "add_rms_norm", "small operations"),
    (runner, "sample", "sampling"),
    (runner, "find_logprobs", "sampling"),
)


@dataclass(frozen=True)
class Profile:
    """One workload's run."""

    workload: str
    size: str
    device: str
    commit: str
    steps: int
    seconds: float
    shares: dict[str, float]  # of the seconds, by phase

    @property
    def host_share(self) -> float:
        return sum(self.shares[phase] for phase in HOST_PHASES)


class Stopwatch:
    """Seconds by phase; an operation within another counts as part of that."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._is_running = False

    def timed(self, phase: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        """`operation`, with its time counted."""

        def call(*arguments: Any, **named: Any) -> Any:
            if self._is_running:
                return operation(*arguments, **named)
            self._is_running = True
            started = time.perf_counter()
            result = operation(*arguments, **named)
            self.seconds[phase] += time.perf_counter() - started
            self._is_running = False
            return result

        return call


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """`owner.name` is `value` for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def profile(engine: BenchmarkEngine, size: Size, device: str) -> Profile:
    """Run the workload of `size` under the plan, with every operation timed."""
    watch = Stopwatch()
    head = engine.decoder._head
    multiply = Linear.__call__
    multiply_head = watch.timed("head", multiply)
    multiply_other = watch.timed("linear", multiply)

    def by_layer(layer: Linear, x: torch.Tensor) -> Any:
        return multiply_head(layer, x) if layer is head else multiply_other(layer, x)

    scheduler = engine.scheduler(PLANNED, size.kv_tokens)
    scheduler.add(greedy_sequences(size.make()))
    stepper = Stepper(scheduler, engine.runner)
    with ExitStack() as stack:
        stack.enter_context(replaced(Linear, "__call__", by_layer))
        gated = watch.timed("linear", GatedLinear.__call__)
        stack.enter_context(replaced(GatedLinear, "__call__", gated))
        own = ((scheduler, "schedule", "schedule"), (scheduler, "commit", "commit"))
        for owner, name, phase in (*OPERATIONS, *own):
            timed = watch.timed(phase, getattr(owner, name))
            stack.enter_context(replaced(owner, name, timed))
        started = time.perf_counter()
        while stepper.step():
            pass
        seconds = time.perf_counter() - started
    watch.seconds["other"] = seconds - sum(watch.seconds.values())
    return Profile(
        workload=size.workload,
        size=f"{size.description}; {size.text}",
        device=device,
        commit=commit_name(),
        steps=scheduler.num_steps,
        seconds=round(seconds, 3),
        shares={phase: round(watch.seconds[phase] / seconds, 4) for phase in PHASES},
    )


def print_profiles(profiles: list[Profile]) -> None:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("phase")
    for one in profiles:
        table.add_column(one.workload, justify="right")
    table.add_row("ms per step", *(f"{1000 * one.seconds / one.steps:.1f}" for one in profiles))
    for phase in PHASES:
        table.add_row(phase, *(f"{one.shares[phase]:.1%}" for one in profiles))
    table.add_row("host in all", *(f"{one.host_share:.1%}" for one in profiles))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", default=",".join(CPU_SIZES), help="which, with commas")
    parser.add_argument("--rows", type=Path, help="write the profiles to this JSONL file")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--trial", action="store_true", help="small sizes: does it all work?")
    given = parser.parse_args()
    unknown = set(given.workloads.split(",")) - set(CPU_SIZES)
    if unknown:
        parser.error(f"--workloads has {', '.join(unknown)}; allowed are {', '.join(CPU_SIZES)}")
    configure_host(given.threads)
    cpu = torch.device("cpu")
    dtype = resolve_dtype("auto", cpu)
    model = load_decoder(resolve_model(DEFAULT_MODEL, cache_folder()), dtype, cpu)
    engine = BenchmarkEngine(model, KV_BYTES, measure_device(cpu, dtype, 0.0).step_tokens)
    engine.run(CPU_SIZES["W1"].shrunk().make(), PLANNED)
    profiles = []
    for name in given.workloads.split(","):
        size = CPU_SIZES[name].shrunk() if given.trial else CPU_SIZES[name]
        profiles.append(profile(engine, size, cpu_name(given.threads)))
        print(f"{name}: {profiles[-1].seconds:.1f} s", file=sys.stderr, flush=True)
    print_profiles(profiles)
    if given.rows is not None:
        write_records(given.rows, map(asdict, profiles))


if __name__ == "__main__":
    main()
