"""Part `profile`: which kernels the time of steady steps goes to, and how long the device waits."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from torch.profiler import ProfilerActivity, profile

from gpu.end_to_end import make_engine
from gpu.machine import IS_TOY, device, synchronise, write_results
from gpu.models import shapes
from gpu.results import results_file
from harness.engine_run import Stepper, greedy_sequences
from harness.sizes import TOY_SIZES, Size
from trunkline.engine.simulation.simulate import PLANNED

WARM_STEPS, PROFILED_STEPS = (1, 2) if IS_TOY else (30, 20)
MOST_KERNELS = 25


@dataclass(frozen=True)
class KernelShare:
    """What one kernel takes of the profiled steps."""

    kernel: str
    calls: int
    milliseconds: float  # on the device
    share: float  # of the steps' time on the clock


def main() -> None:
    name, config = next(iter(shapes().items()))
    engine = make_engine(config)
    size = TOY_SIZES["W1-4"] if IS_TOY else Size("W1-16", 640)
    scheduler = engine.scheduler(PLANNED)
    scheduler.add(greedy_sequences(size.make()))
    stepper = Stepper(scheduler, engine.runner)
    for _ in range(WARM_STEPS):
        stepper.step()
    is_gpu = device().type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    synchronise()
    with profile(activities=activities) as profiler:
        started = time.perf_counter()
        for _ in range(PROFILED_STEPS):
            stepper.step()
        synchronise()
        seconds = time.perf_counter() - started
    everything = profiler.key_averages()
    # An operation's kernels are listed by themselves too: what is on the device counts once.
    kind = "CUDA" if is_gpu else "CPU"
    averages = [event for event in everything if event.device_type.name == kind]
    sort_by = "self_cuda_time_total" if is_gpu else "self_cpu_time_total"
    table = everything.table(sort_by=sort_by, row_limit=MOST_KERNELS, max_name_column_width=60)
    results_file("profile").with_suffix(".txt").write_text(f"{name}, {size.text}\n{table}\n")
    print(table)

    def own_microseconds(event: object) -> float:
        return float(getattr(event, "self_device_time_total" if is_gpu else "self_cpu_time_total"))

    largest = sorted(averages, key=own_microseconds, reverse=True)
    shares = [
        KernelShare(
            kernel=event.key,
            calls=int(event.count),
            milliseconds=round(own_microseconds(event) / 1000, 3),
            share=round(own_microseconds(event) / 1e6 / seconds, 4),
        )
        for event in largest[:MOST_KERNELS]
    ]
    busy = sum(map(own_microseconds, averages)) / 1e6 / seconds
    print(f"{PROFILED_STEPS} steps of {name}: {seconds:.3f} s, the device busy for {busy:.0%}")
    total = KernelShare("all", PROFILED_STEPS, round(1000 * seconds * busy, 3), round(busy, 4))
    write_results("profile", map(asdict, [total, *shares]))


if __name__ == "__main__":
    main()
