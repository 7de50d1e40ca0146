"""Part `profile`: which kernels the time of steady steps goes to, and how long the device waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

from torch.profiler import ProfilerActivity, profile

from gpu.engines import STEP_TOKENS, engine
from gpu.machine import IS_TOY, device, synchronise
from gpu.models import shapes
from gpu.parts import Case, Record
from harness.engine_run import Stepper, greedy_sequences
from harness.sizes import TOY_SIZES, Size
from trunkline.engine.simulation.simulate import PLANNED

MOST_KERNELS = 25


@dataclass(frozen=True)
class Stretch:
    """Steps of a workload that are looked at."""

    name: str
    size: Size
    warm_steps: int  # before them
    steps: int


if IS_TOY:
    STRETCHES: tuple[Stretch, ...] = (Stretch("first steps", TOY_SIZES["W1-4"], 1, 2),)
else:
    STRETCHES = (
        Stretch("prefill and decode", Size("W1-16", 640), 30, 20),
        # 83,000 tokens of prompts are through before, and no sequence is yet.
        Stretch("decode", Size("W1-16", 256), 45, 20),
    )


@dataclass(frozen=True)
class KernelShare:
    """What one kernel takes of the profiled steps."""

    steps: str  # which
    kernel: str
    calls: int
    milliseconds: float  # on the device
    share: float  # of the steps' time on the clock


def profile_stretch(stretch: Stretch) -> Iterator[Record]:
    """The device's busy time first, then the kernels that take most of it."""
    used = engine(next(iter(shapes())), STEP_TOKENS[len(STEP_TOKENS) // 2])
    scheduler = used.scheduler(PLANNED)
    scheduler.add(greedy_sequences(stretch.size.make()))
    stepper = Stepper(scheduler, used.runner)
    for _ in range(stretch.warm_steps):
        stepper.step()
    is_gpu = device().type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    synchronise()
    with profile(activities=activities) as profiler:
        started = time.perf_counter()
        for _ in range(stretch.steps):
            stepper.step()
        synchronise()
        seconds = time.perf_counter() - started
    # An operation's kernels are listed by themselves too: what is on the device counts once.
    kind, figure = ("CUDA", "self_device_time_total") if is_gpu else ("CPU", "self_cpu_time_total")
    averages = [event for event in profiler.key_averages() if event.device_type.name == kind]

    def own_seconds(event: object) -> float:
        return float(getattr(event, figure)) / 1e6

    def share(name: str, calls: int, taken: float) -> Record:
        milliseconds = round(1000 * taken, 3)
        return asdict(
            KernelShare(stretch.name, name, calls, milliseconds, round(taken / seconds, 4))
        )

    yield share("all", stretch.steps, sum(map(own_seconds, averages)))
    for event in sorted(averages, key=own_seconds, reverse=True)[:MOST_KERNELS]:
        yield share(event.key, int(event.count), own_seconds(event))


def cases() -> Iterator[Case]:
    for stretch in STRETCHES:
        yield Case(stretch.name, partial(profile_stretch, stretch))


def line(record: Record) -> str:
    return (
        f"{record['share']:7.1%} {record['milliseconds']:10.2f} ms {record['calls']:6} x  "
        f"{record['kernel'][:70]} ({record['steps']})"
    )
