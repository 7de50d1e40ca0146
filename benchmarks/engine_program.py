"""Trunkline's engine as a contestant.

A request's options are `setting`, one of `SETTINGS`, and `kv_tokens`, a limit of the KV cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import trunkline
from harness.engine_run import SETTINGS, BenchmarkEngine, load_decoder, random_decoder
from peers.protocol import Answer, Job, Options, serve
from trunkline.engine.calibration import measure_device
from trunkline.engine.model.config import load_config
from trunkline.engine.runner import configure_host
from trunkline.engine.simulation.simulate import PLANNED
from trunkline.engine.simulation.workloads import WorkItem, make_workload

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class TrunklineAnswerer:
    """The engine on the GPU, or without one on the CPU, with its own calibration's token budget."""

    def __init__(self, options: Options) -> None:
        configure_host(options.threads)
        self.version = trunkline.__version__
        self._dtype = getattr(torch, options.dtype)
        if options.is_dummy:
            decoder = random_decoder(load_config(options.model), self._dtype, DEVICE)
        else:
            decoder = load_decoder(options.model, self._dtype, DEVICE)
        budget = measure_device(DEVICE, self._dtype, 0.0).step_tokens
        self._engine = BenchmarkEngine(decoder, options.kv_bytes, budget)
        self._engine.run(make_workload("W1-4", 8, scale=0.05), PLANNED)
        if DEVICE.type == "cuda":
            # Page tables grow to the longest sequences before launches are recorded.
            self._engine.run(make_workload("W11", 8), PLANNED)
            self._engine.run(make_workload("W1-16", 64, scale=0.5), PLANNED)
            self._engine.record_graphs()
        self.details: Mapping[str, Any] = {
            "memory_bytes": self._engine.memory_bytes,
            "max_batch_tokens": budget,
        }

    def run(self, job: Job, request: Mapping[str, Any]) -> Answer:
        hardware = measure_device(DEVICE, self._dtype, self._engine.memory_bytes)
        items = [
            WorkItem(np.array(prompt, np.int32), length)
            for prompt, length in zip(job.prompts, job.output_lengths, strict=True)
        ]
        done = self._engine.run(items, SETTINGS[request["setting"]], request.get("kv_tokens"))
        details = {
            "steps": done.steps,
            "computed_prompt_tokens": done.computed_prompt_tokens,
            "peak_kv_tokens": done.peak_kv_tokens,
            "preemptions": done.preemptions,
            "host_share": done.schedule_seconds / done.seconds,
            "flops": hardware.flops,
            "bandwidth": hardware.bandwidth,
        }
        return Answer(done.seconds, done.outputs, details)


if __name__ == "__main__":
    serve(TrunklineAnswerer)
