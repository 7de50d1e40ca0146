"""Part `end-to-end`: whole workloads on models of real shape with random weights.

The plan beside the engine's own baselines, most telling workload first; what does not fit the time
is left out. Every row carries the floor that follows from the rates measured in the same run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

import trunkline
from gpu.machine import IS_TOY, device, device_name, dtype, hardware
from gpu.models import shapes
from gpu.results import results_file
from harness.engine_run import SETTINGS, BenchmarkEngine, EngineRun, random_decoder
from harness.floor import bounds_of
from harness.rows import Row, commit_name, write_rows
from harness.sizes import GPU_SIZES, TOY_SIZES, Size
from trunkline.engine.calibration import shape_of
from trunkline.engine.model.config import config_from_hf
from trunkline.engine.simulation.simulate import PLANNED
from trunkline.engine.simulation.workloads import make_workload

# Nothing new is started after this; the part has less than ten minutes.
BUDGET_SECONDS = float(os.environ.get("SECONDS_END_TO_END", "420"))
KV_SHARE = 0.8  # of the memory that the weights leave
PLAN, FCFS, STATIC = SETTINGS


@dataclass(frozen=True)
class Task:
    """A workload on a model, under some settings, so many times."""

    model: str
    size: Size
    settings: tuple[str, ...]
    repeat: int


def tasks() -> list[Task]:
    if IS_TOY:
        return [Task("toy", TOY_SIZES["W1-4"], (PLAN, FCFS), 1)]
    llama, qwen = shapes()
    return [
        Task(llama, Size("W1-16", 640), (PLAN, FCFS, STATIC), 1),
        Task(llama, Size("W1-16", 1600), (PLAN, FCFS), 3),
        Task(llama, GPU_SIZES["W8"], (PLAN, FCFS), 2),
        Task(llama, GPU_SIZES["W3"], (PLAN, FCFS), 2),
        Task(llama, GPU_SIZES["W9"], (PLAN, FCFS), 1),
        Task(llama, GPU_SIZES["W11"], (PLAN, FCFS), 1),
        Task(qwen, Size("W1-16", 1600), (PLAN, FCFS), 2),
        Task(qwen, GPU_SIZES["W7"], (PLAN, FCFS), 1),
    ]


def make_engine(config: PretrainedConfig) -> BenchmarkEngine:
    decoder = random_decoder(config_from_hf(config), dtype(), device())
    if IS_TOY:
        return BenchmarkEngine(decoder, 2**20, 32)
    free, _ = torch.cuda.mem_get_info(device())
    engine = BenchmarkEngine(decoder, int(free * KV_SHARE), hardware().step_tokens)
    engine.run(make_workload("W1-16", 64, scale=0.2), PLANNED)  # compiles and captures
    return engine


def run_tasks() -> Iterator[Row]:
    started = time.perf_counter()
    engine: BenchmarkEngine | None = None
    loaded = ""
    for task in tasks():
        if time.perf_counter() - started > BUDGET_SECONDS:
            print(f"{task.model} {task.size.workload}: left out for time", file=sys.stderr)
            continue
        if loaded != task.model or engine is None:
            engine = None  # its memory goes before the next one's is taken
            if device().type == "cuda":
                torch.cuda.empty_cache()
            engine, loaded = make_engine(shapes()[task.model]), task.model
        yield from run_task(task, engine)


def run_task(task: Task, engine: BenchmarkEngine) -> list[Row]:
    items = task.size.make()
    runs: dict[str, list[EngineRun]] = {name: [] for name in task.settings}
    for _ in range(task.repeat):
        for name in task.settings:
            runs[name].append(engine.run(items, SETTINGS[name], task.size.kv_tokens))
            seconds = runs[name][-1].seconds
            print(f"{task.model} {task.size.workload} {name}: {seconds:.2f} s", flush=True)
    rates = hardware()
    machine = type(rates)(
        rates.name, rates.flops, rates.bandwidth, engine.memory_bytes, 0.0, is_measured=True
    )
    bounds = bounds_of(items, machine, shape_of(engine.config))
    plan = runs[PLAN]
    return [
        Row(
            part="gpu-end-to-end",
            workload=task.size.workload,
            size=f"{task.size.description}; {task.size.text}",
            engine=f"trunkline {name}",
            version=trunkline.__version__,
            model=task.model,
            dtype=str(dtype()).removeprefix("torch."),
            device=device_name(),
            commit=commit_name(),
            seconds=[round(run.seconds, 4) for run in own],
            ratios=[round(a.seconds / b.seconds, 3) for a, b in zip(own, plan, strict=True)],
            prompt_tokens=sum(len(item.prompt) for item in items),
            output_tokens=sum(map(len, own[0].outputs)),
            computed_prompt_tokens=own[0].computed_prompt_tokens,
            peak_kv_tokens=own[0].peak_kv_tokens,
            preemptions=own[0].preemptions,
            steps=own[0].steps,
            host_share=round(own[0].schedule_seconds / own[0].seconds, 4),
            flops=round(rates.flops),
            bandwidth=round(rates.bandwidth),
            floor_s=round(bounds.floor, 4),
            lower_bound_s=round(bounds.lower, 4),
        )
        for name, own in runs.items()
    ]


def main() -> None:
    rows: list[Row] = []
    for row in run_tasks():
        rows.append(row)
        write_rows(results_file("end-to-end"), rows)  # also when time runs out


if __name__ == "__main__":
    main()
