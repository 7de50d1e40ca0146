"""Our own engine for the benchmarks: model, cache, scheduler and runner, without a store.

Imports neither the settings nor a command line, so that it runs wherever torch does.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch

from trunkline.engine.calibration import shape_of
from trunkline.engine.gpu_memory import run_largest_step
from trunkline.engine.gpu_runner import GpuRunner
from trunkline.engine.graphs import MOST_ROWS, padded_sizes
from trunkline.engine.kv_cache import allocate_kv_cache, num_pages_for
from trunkline.engine.model.config import ModelConfig, load_config
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.model.weights import (
    assemble,
    random_tensors,
    read_tensors,
    tensor_shapes,
)
from trunkline.engine.runner import Runner
from trunkline.engine.scheduler import Scheduler
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.simulation.simulate import FCFS_LRU, PLANNED, STATIC_OFF, Setting
from trunkline.engine.simulation.workloads import WorkItem
from trunkline.engine.step_runner import RunningStep, StepRunner
from trunkline.kernels.gpu.launch import triton_for

PAGE_SIZE = 16
# The plan first: the others are compared with it.
SETTINGS = {setting.label: setting for setting in (PLANNED, FCFS_LRU, STATIC_OFF)}


@dataclass(frozen=True)
class EngineRun:
    """One run of a workload."""

    seconds: float
    schedule_seconds: float  # of these, on the host between the steps
    outputs: list[list[int]]
    steps: int
    computed_prompt_tokens: int
    peak_kv_tokens: int
    preemptions: int


class BenchmarkEngine:
    """A loaded model with one KV cache, answering workload after workload."""

    def __init__(
        self,
        decoder: Decoder,
        kv_bytes: int,
        max_batch_tokens: int,
        *,
        cuda_graphs: bool = True,
        cuda_graph_rows: int = MOST_ROWS,
    ) -> None:
        self.decoder = decoder
        self._cuda_graphs = cuda_graphs
        self._cuda_graph_rows = cuda_graph_rows
        self.config = decoder.config
        self.max_batch_tokens = max_batch_tokens
        self.num_pages = num_pages_for(self.config, decoder.dtype, PAGE_SIZE, kv_bytes)
        self._cache = allocate_kv_cache(
            self.config, decoder.dtype, decoder.device, self.num_pages, PAGE_SIZE
        )
        self.runner = self._make_runner()

    def _make_runner(self) -> StepRunner:
        if not triton_for(self._cache.keys[0]):
            return Runner(self.decoder, self._cache)
        return GpuRunner(
            self.decoder,
            self._cache,
            max_batch_tokens=self.max_batch_tokens,
            cuda_graphs=self._cuda_graphs,
            cuda_graph_rows=self._cuda_graph_rows,
        )

    def with_step_tokens(self, max_batch_tokens: int) -> BenchmarkEngine:
        """An engine of other steps on the same weights and cache; one of the two runs at a time."""
        other = copy.copy(self)
        other.max_batch_tokens = max_batch_tokens
        other.runner = other._make_runner()
        return other

    def record_graphs(self) -> None:
        """Record the launches for all numbers of rows, which a run does at the second time of each.

        What moves when it grows must have grown before.
        """
        if isinstance(self.runner, GpuRunner) and self.runner.recorded_rows:
            # The largest first: the memory of its intermediate results serves all.
            for num_rows in reversed(padded_sizes(self.runner.recorded_rows)):
                for _ in range(2):
                    run_largest_step(self.runner, num_rows)

    @property
    def memory_bytes(self) -> float:
        """What weights and KV cache have together."""
        shape = shape_of(self.config)
        kv_bytes = self.num_pages * PAGE_SIZE * shape.kv_bytes_per_token
        return float(kv_bytes + shape.weight_bytes)

    def scheduler(self, setting: Setting, kv_tokens: int | None = None) -> Scheduler:
        """A scheduler of the whole cache, or of its first `kv_tokens` tokens."""
        limit = self.num_pages if kv_tokens is None else kv_tokens // PAGE_SIZE
        return Scheduler(
            SchedulerConfig(
                PAGE_SIZE,
                min(limit, self.num_pages),
                self.max_batch_tokens,
                policy=setting.scheduler,
                sharing=setting.sharing,
                order=setting.order,
                grouping=setting.grouping,
            )
        )

    def run(
        self, items: list[WorkItem], setting: Setting, kv_tokens: int | None = None
    ) -> EngineRun:
        """Answer `items`, planning included in the time; see `scheduler` for `kv_tokens`."""
        scheduler = self.scheduler(setting, kv_tokens)
        sequences = greedy_sequences(items)
        stepper = Stepper(scheduler, self.runner)
        started = time.perf_counter()
        scheduler.add(sequences)
        while stepper.step():
            pass
        return EngineRun(
            seconds=time.perf_counter() - started,
            schedule_seconds=stepper.schedule_seconds,
            outputs=[sequence.output for sequence in sequences],
            steps=scheduler.num_steps,
            computed_prompt_tokens=scheduler.num_computed_prompt_tokens,
            peak_kv_tokens=scheduler.peak_kv_pages * PAGE_SIZE,
            preemptions=scheduler.num_preemptions,
        )


class Stepper:
    """Schedules, runs and commits, as far ahead of the results as the runner allows."""

    def __init__(self, scheduler: Scheduler, runner: StepRunner) -> None:
        self.schedule_seconds = 0.0
        self._scheduler = scheduler
        self._runner = runner
        self._in_flight: deque[RunningStep] = deque()  # oldest first

    def step(self) -> bool:
        """Hand one step to the device, take one result; False: all is done."""
        asked = time.perf_counter()
        plan = self._scheduler.schedule()
        self.schedule_seconds += time.perf_counter() - asked
        if plan is not None:
            self._in_flight.append(self._runner.submit(plan, self._scheduler.sequences))
        if self._in_flight and (plan is None or len(self._in_flight) > self._runner.lookahead):
            result = self._in_flight.popleft().result()
            arrived = time.perf_counter()
            self._scheduler.commit(result)
            self.schedule_seconds += time.perf_counter() - arrived
        return self._scheduler.has_work


def greedy_sequences(items: list[WorkItem]) -> list[Sequence]:
    """One sequence for each item; none stops before its length."""
    return [
        Sequence(i, 0, item.prompt, SamplingParams(item.num_output_tokens, temperature=0.0))
        for i, item in enumerate(items)
    ]


def load_decoder(folder: Path, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The decoder of a safetensors folder."""
    config = load_config(folder)
    return assemble(config, read_tensors(folder, tensor_shapes(config), dtype, device))


def random_decoder(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Decoder:
    """A decoder of this shape with random weights."""
    return assemble(config, random_tensors(tensor_shapes(config), dtype, device))
