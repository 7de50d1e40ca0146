"""The plan beside the engine's own baselines on this CPU, with the embedded default model.

Every workload runs under each setting in turn, several times; what is printed are medians and
ratios within the run, because absolute seconds on a shared CPU mean little. Before anything is
timed, the outputs of all settings are compared token by token in float32.

    python benchmarks/cpu.py [--workloads W1,W8] [--repeat 3] [--rows benchmarks/results/cpu.jsonl]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from trunkline.engine.config import EngineConfig, LoadFormat
from trunkline.engine.default_model import resolve_model
from trunkline.engine.kv_cache import allocate_kv_cache, num_pages_for
from trunkline.engine.model.weights import LoadedModel, load_model, resolve_dtype
from trunkline.engine.runner import Runner, configure_host
from trunkline.engine.scheduler import Scheduler
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.simulation.simulate import FCFS_LRU, PLANNED, STATIC_OFF, Setting
from trunkline.engine.simulation.workloads import WorkItem, make_workload

SETTINGS = (PLANNED, FCFS_LRU, STATIC_OFF)
PAGE_SIZE = 16
MAX_BATCH_TOKENS = 1024
KV_CACHE_BYTES = 2 * 2**30

# Workload -> (requests, scale of the lengths): tens of seconds each.
SIZES = {
    "W1": (64, 0.3),
    "W3": (48, 0.25),
    "W5": (32, 0.4),
    "W8": (48, 0.12),
    "W10": (96, 0.4),
    "W11": (32, 0.12),
}


@dataclass(frozen=True)
class Row:
    """One measured run."""

    workload: str
    requests: int
    scale: float
    setting: str
    seconds: float
    steps: int
    prompt_tokens: int
    computed_prompt_tokens: int
    output_tokens: int
    peak_kv_tokens: int
    preemptions: int
    model: str
    dtype: str
    device: str
    commit: str
    torch: str


def run_once(
    model: LoadedModel, dtype: torch.dtype, items: list[WorkItem], setting: Setting
) -> tuple[float, list[list[int]], Scheduler]:
    """Answer `items`; seconds, outputs, and the scheduler that made them."""
    device = torch.device("cpu")
    num_pages = num_pages_for(model.config, dtype, PAGE_SIZE, KV_CACHE_BYTES)
    cache = allocate_kv_cache(model.config, dtype, device, num_pages, PAGE_SIZE)
    scheduler = Scheduler(
        SchedulerConfig(
            PAGE_SIZE,
            num_pages,
            MAX_BATCH_TOKENS,
            policy=setting.scheduler,
            sharing=setting.sharing,
            order=setting.order,
            grouping=setting.grouping,
        )
    )
    runner = Runner(model.decoder, cache)
    sequences = [
        Sequence(i, 0, item.prompt, SamplingParams(item.num_output_tokens, temperature=0.0))
        for i, item in enumerate(items)
    ]
    started = time.perf_counter()
    scheduler.add(sequences)
    while (plan := scheduler.schedule()) is not None:
        scheduler.commit(runner.run(plan, scheduler.sequences))
    return time.perf_counter() - started, [s.output for s in sequences], scheduler


def check_equality(folder: Path) -> None:
    """Every setting gives the same tokens in float32."""
    model = load_model(folder, torch.float32, torch.device("cpu"), LoadFormat.AUTO)
    for name in SIZES:
        items = make_workload(name, 12, scale=0.05)
        outputs = [run_once(model, torch.float32, items, setting)[1] for setting in SETTINGS]
        if any(other != outputs[0] for other in outputs):
            sys.exit(f"{name}: the settings give different tokens; nothing is timed")


def measure(folder: Path, names: list[str], repeat: int) -> list[Row]:
    dtype = resolve_dtype("auto", torch.device("cpu"))
    model = load_model(folder, dtype, torch.device("cpu"), LoadFormat.AUTO)
    describe = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    rows = []
    for name in names:
        count, scale = SIZES[name]
        items = make_workload(name, count, scale=scale)
        for _ in range(repeat):
            for setting in SETTINGS:  # in turn, so that a slow minute hits all of them
                seconds, outputs, scheduler = run_once(model, dtype, items, setting)
                rows.append(
                    Row(
                        workload=name,
                        requests=count,
                        scale=scale,
                        setting=setting.label,
                        seconds=round(seconds, 3),
                        steps=scheduler.num_steps,
                        prompt_tokens=sum(len(item.prompt) for item in items),
                        computed_prompt_tokens=scheduler.num_computed_prompt_tokens,
                        output_tokens=sum(map(len, outputs)),
                        peak_kv_tokens=scheduler.peak_kv_pages * PAGE_SIZE,
                        preemptions=scheduler.num_preemptions,
                        model="SmolLM2-135M-Instruct",
                        dtype=str(dtype).removeprefix("torch."),
                        device=f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
                        commit=describe.stdout.strip(),
                        torch=torch.__version__,
                    )
                )
                print(f"{name} {setting.label}: {seconds:.1f} s", file=sys.stderr)
    return rows


def print_table(rows: list[Row]) -> None:
    table = Table(title="medians; ratio: the baseline's seconds over the plan's, run by run")
    for column in ("workload", "setting", "seconds", "spread", "ratio", "prefill computed"):
        table.add_column(column, justify="right")
    for name in dict.fromkeys(row.workload for row in rows):
        planned = [r.seconds for r in rows if (r.workload, r.setting) == (name, PLANNED.label)]
        for setting in SETTINGS:
            own = [r for r in rows if (r.workload, r.setting) == (name, setting.label)]
            seconds = [r.seconds for r in own]
            ratios = [s / p for s, p in zip(seconds, planned, strict=True)]
            table.add_row(
                name,
                setting.label,
                f"{statistics.median(seconds):.1f}",
                f"{min(seconds):.1f} to {max(seconds):.1f}",
                f"{statistics.median(ratios):.2f}",
                f"{own[0].computed_prompt_tokens / own[0].prompt_tokens:.0%}",
            )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", default=",".join(SIZES), help="which, with commas")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each setting")
    parser.add_argument("--rows", type=Path, help="append the measured rows to this JSONL file")
    arguments = parser.parse_args()
    names = arguments.workloads.split(",")
    unknown = set(names) - set(SIZES)
    if unknown:
        parser.error(f"--workloads has {', '.join(unknown)}; allowed are {', '.join(SIZES)}")
    configure_host(torch.get_num_threads())
    config = EngineConfig()
    folder = resolve_model(config.model, config.cache_dir.expanduser())
    check_equality(folder)
    rows = measure(folder, names, arguments.repeat)
    print_table(rows)
    if arguments.rows is not None:
        with arguments.rows.open("a") as file:
            file.writelines(json.dumps(vars(row)) + "\n" for row in rows)


if __name__ == "__main__":
    main()
