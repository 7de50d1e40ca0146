"""What planning and scheduling cost on the host: seconds, memory, milliseconds per step.

    python benchmarks/planning.py [--rows benchmarks/results/planning.jsonl]

Every line is measured in a process of its own, on one core, with token ids given.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from harness.rows import write_records
from trunkline.engine.prefix_tree import Prompts
from trunkline.engine.savings import estimate_savings
from trunkline.engine.scheduler import Scheduler
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.step_plan import StepResult

GROUP = 16
SHARED = 0.8  # of each prompt
PAGE_SIZE = 16

PLANS = ((50_000, 2000), (250_000, 200), (500_000, 200), (1_000_000, 200))
WAITING = (4_000, 16_000, 48_000)
NUM_RUNNING = 2000


def grouped_prompts(count: int, length: int) -> Prompts:
    """Shuffled prompts in groups that share most of their tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50_000, (count, length), dtype=np.int32)
    shared = int(length * SHARED)
    for first in range(0, count, GROUP):
        tokens[first : first + GROUP, :shared] = tokens[first, :shared]
    rng.shuffle(tokens)
    return Prompts(tokens.reshape(-1), np.arange(count + 1, dtype=np.int64) * length)


def measure_plan(count: int, length: int) -> dict[str, float]:
    prompts = grouped_prompts(count, length)
    before = _resident_bytes()
    savings, _ = estimate_savings(prompts, PAGE_SIZE, 0, 0.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": savings.plan_seconds,
        "memory_over_tokens": (peak - before + prompts.tokens.nbytes) / prompts.tokens.nbytes,
        "saved_share": savings.saved_share,
    }


def measure_steps(num_waiting: int) -> dict[str, float]:
    """Median host time of a step with about 2,000 sequences running."""
    prompts = grouped_prompts(NUM_RUNNING + num_waiting, 128)
    sampling = SamplingParams(max_tokens=200)
    scheduler = Scheduler(SchedulerConfig(PAGE_SIZE, 34_000, NUM_RUNNING * 4))
    scheduler.add(Sequence(i, 0, prompts[i], sampling) for i in range(len(prompts)))
    seconds: list[float] = []
    running: list[int] = []
    while len(seconds) < 300:
        started = time.perf_counter()
        plan = scheduler.schedule()
        if plan is None:
            break
        scheduled = time.perf_counter()
        slots = plan.entry_sequence[plan.entry_samples]
        result = StepResult(plan.step, slots, np.ones(len(slots), np.int32), (None,) * len(slots))
        sampled = time.perf_counter()
        scheduler.commit(result)
        if 0.9 * NUM_RUNNING < scheduler.num_running < 1.3 * NUM_RUNNING:
            running.append(scheduler.num_running)
            seconds.append(scheduled - started + time.perf_counter() - sampled)
    return {
        "running": float(np.median(running)),
        "milliseconds": 1000 * float(np.median(seconds)),
        "milliseconds_p90": 1000 * float(np.quantile(seconds, 0.9)),
    }


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def in_own_process(*arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help="write the figures to this JSONL file")
    arguments = parser.parse_args()
    if arguments.measure:
        kind, *numbers = arguments.measure
        given = map(int, numbers)
        measured = measure_plan(*given) if kind == "plan" else measure_steps(*given)
        print(json.dumps(measured))
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    records: list[dict[str, object]] = []
    print("planning, one core; memory: all that the process has, in multiples of the token bytes")
    for count, length in PLANS:
        plan = in_own_process("plan", count, length)
        records.append({"kind": "plan", "prompts": count, "length": length, **plan})
        print(
            f"{count:>10,} prompts x {length:>5,} tokens {plan['seconds']:8.2f} s "
            f"{plan['memory_over_tokens']:6.2f} x {plan['saved_share']:6.1%} saved"
        )
    print("scheduling: host time of a step, schedule and commit")
    for num_waiting in WAITING:
        steps = in_own_process("steps", num_waiting)
        records.append({"kind": "steps", "waiting": num_waiting, **steps})
        print(
            f"{steps['running']:>10.0f} running {num_waiting:>8,} waiting "
            f"{steps['milliseconds']:8.2f} ms median {steps['milliseconds_p90']:8.2f} ms p90"
        )
    if arguments.rows is not None:
        write_records(arguments.rows, records)


if __name__ == "__main__":
    main()
