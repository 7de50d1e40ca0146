"""Part `end-to-end`: whole workloads on models of real shape with random weights.

The plan with steps of several sizes, then the engine's own baseline with the size that was fastest.
Every row carries the floor that follows from the rates measured in the same process.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import trunkline
from gpu.engines import START_SECONDS, STEP_TOKENS, engine, is_ready
from gpu.machine import IS_TOY, device_name, dtype, dtype_name, hardware
from gpu.models import shapes
from gpu.parts import Case, Record
from harness.engine_run import SETTINGS, BenchmarkEngine, EngineRun
from harness.floor import Bounds, bounds_of
from harness.rows import Row, as_record, commit_name
from harness.sizes import GPU_SIZES, TOY_SIZES, Size
from trunkline.engine.calibration import shape_of
from trunkline.engine.model.config import config_from_hf
from trunkline.engine.simulation.hardware import Hardware
from trunkline.engine.simulation.workloads import WorkItem

PLAN, FCFS, STATIC = SETTINGS
# Of the floor, what a run is expected to achieve: only what surely does not fit is left out.
EXPECTED_SHARE = 0.6


@dataclass(frozen=True)
class Task:
    """A workload on a model under a setting. Steps of None are those that were fastest before."""

    model: str
    size: Size
    setting: str
    step_tokens: int | None = None

    @property
    def name(self) -> str:
        steps = "" if self.step_tokens is None else f", steps of {self.step_tokens}"
        return f"{self.model}, {self.size.workload}, {self.setting}{steps}"


def tasks() -> list[Task]:
    model = next(iter(shapes()))
    if IS_TOY:
        varied, others = [TOY_SIZES["W1-4"]], []
    else:
        varied = [Size("W1-16", 640), Size("W1-64", 640)]
        # Long prefixes in turn, of which half fit the cache.
        others = [Size("W11", 160, kv_tokens=60_000)]
        others += [GPU_SIZES[name] for name in ("W8", "W3", "W9")]
    found = [Task(model, size, PLAN, tokens) for size in varied for tokens in STEP_TOKENS]
    found += [Task(model, size, FCFS) for size in varied]
    found += [Task(model, size, setting) for size in others for setting in (PLAN, FCFS)]
    found += [Task(model, size, STATIC) for size in varied]
    found += [
        Task(other, size, setting)
        for other in list(shapes())[1:]
        for size in (Size("W1-16", 1600), GPU_SIZES["W7"])
        for setting in (PLAN, FCFS)
    ]
    return found


class Runs:
    """The runs of this process; later ones are compared with them and planned from them."""

    def __init__(self) -> None:
        self._plans: dict[tuple[str, Size, int], EngineRun] = {}

    def cases(self) -> Iterator[Case]:
        for task in tasks():
            expected = partial(self.expected_seconds, task)
            yield Case(task.name, partial(self.measure, task), expected)

    def measure(self, task: Task) -> Iterator[Record]:
        step_tokens = self.step_tokens(task)
        used = engine(task.model, step_tokens)
        run = used.run(items_of(task.size), SETTINGS[task.setting], task.size.kv_tokens)
        key = (task.model, task.size, step_tokens)
        if task.setting == PLAN:
            self._plans[key] = run
        yield as_record(row_of(task, used, run, self._plans.get(key)))

    def step_tokens(self, task: Task) -> int:
        """The task's own; else what was fastest with its size, or with the first."""
        if task.step_tokens is not None:
            return task.step_tokens
        of_model = [key for key in self._plans if key[0] == task.model]
        of_size = [key for key in of_model if key[1] == task.size]
        of_first = [key for key in of_model if key[1] == of_model[0][1]]
        if of_model:
            return min(of_size or of_first, key=lambda key: self._plans[key].seconds)[2]
        return min(STEP_TOKENS, key=lambda tokens: abs(tokens - hardware().step_tokens))

    def expected_seconds(self, task: Task) -> float:
        """Roughly, from the plan's run or from the floor, and what the engine takes to begin."""
        step_tokens = self.step_tokens(task)
        start = 0.0 if is_ready(task.model, step_tokens) else START_SECONDS
        return start + self.expected_run_seconds(task, step_tokens)

    def expected_run_seconds(self, task: Task, step_tokens: int) -> float:
        """Of the run alone."""
        run = self._plans.get((task.model, task.size, step_tokens))
        items = items_of(task.size)
        if run is None:
            shape = shape_of(config_from_hf(shapes()[task.model]))
            expected = bounds_of(items, hardware(), shape).floor / EXPECTED_SHARE
            computed = sum(len(item.prompt) for item in items)
        else:
            expected, computed = run.seconds, run.computed_prompt_tokens
        if task.setting == PLAN or (task.setting == FCFS and task.size.kv_tokens is None):
            return expected
        return expected * sum(len(item.prompt) for item in items) / computed


@functools.cache
def items_of(size: Size) -> list[WorkItem]:
    return size.make()


def bounds(used: BenchmarkEngine, items: list[WorkItem]) -> Bounds:
    """With the memory that weights and cache have together."""
    rates = hardware()
    machine = Hardware(
        rates.name, rates.flops, rates.bandwidth, used.memory_bytes, 0.0, is_measured=True
    )
    return bounds_of(items, machine, shape_of(used.config))


def row_of(task: Task, used: BenchmarkEngine, run: EngineRun, plan: EngineRun | None) -> Row:
    """A run beside the plan's with the same steps; None: this process has none."""
    items = items_of(task.size)
    least = bounds(used, items)
    return Row(
        part="gpu-end-to-end",
        workload=task.size.workload,
        size=f"{task.size.description}; {task.size.text}",
        engine=f"trunkline {task.setting}",
        version=trunkline.__version__,
        model=task.model,
        dtype=dtype_name(dtype()),
        device=device_name(),
        commit=commit_name(),
        seconds=[round(run.seconds, 4)],
        ratios=[] if plan is None else [round(run.seconds / plan.seconds, 3)],
        prompt_tokens=sum(len(item.prompt) for item in items),
        output_tokens=sum(map(len, run.outputs)),
        computed_prompt_tokens=run.computed_prompt_tokens,
        peak_kv_tokens=run.peak_kv_tokens,
        preemptions=run.preemptions,
        steps=run.steps,
        step_tokens=used.max_batch_tokens,
        host_share=round(run.schedule_seconds / run.seconds, 4),
        flops=round(hardware().flops),
        bandwidth=round(hardware().bandwidth),
        floor_s=round(least.floor, 4),
        lower_bound_s=round(least.lower, 4),
    )


def cases() -> Iterator[Case]:
    yield from Runs().cases()


def line(record: Record) -> str:
    ratio = f"{record['ratios'][0]:.2f} x the plan" if record.get("ratios") else "no plan's run"
    return (
        f"{record['median_seconds']:8.2f} s  {ratio}  {record['share_of_floor']:.1%} of the floor  "
        f"{record['saved_share']:.1%} saved  {record['model']}, {record['workload']}, "
        f"{record['engine']}, {record['steps']} steps of {record['step_tokens']}"
    )
