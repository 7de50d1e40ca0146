"""Engines on models of real shape with random weights, which the parts of a process share."""

from __future__ import annotations

import gc
import os

import torch

from gpu.machine import IS_TOY, device, dtype
from gpu.models import shapes
from harness.engine_run import BenchmarkEngine, random_decoder
from harness.sizes import GPU_SIZES, TOY_SIZES, Size
from trunkline.engine.graphs import MOST_ROWS
from trunkline.engine.model.config import config_from_hf
from trunkline.engine.simulation.simulate import PLANNED

STEP_TOKENS = tuple(
    map(int, os.environ.get("STEP_TOKENS", "32,48" if IS_TOY else "2048,4096,8192").split(","))
)
# Rows of a step at most whose launches are recorded in a CUDA graph.
GRAPH_ROWS = int(os.environ.get("GRAPH_ROWS", MOST_ROWS))
# Of the memory that the weights leave. The rest is for activations, graphs and what kernels need.
KV_SHARE = 0.7
TOY_KV_BYTES = 2**20
# What an engine is expected to take until it can run: weights, compiling, recording.
START_SECONDS = 2.0 if IS_TOY else 12.0

_engines: dict[tuple[str, int], BenchmarkEngine] = {}


def is_ready(model: str, step_tokens: int) -> bool:
    """True if `engine` would give one at once."""
    return (model, step_tokens) in _engines


def engine(model: str, step_tokens: int) -> BenchmarkEngine:
    """The engine of a model, one of `shapes()`, warmed up; steps have at most so many rows.

    Those of a model have weights and cache in common. There is room for one model: engines of
    another one are given up.
    """
    if any(name != model for name, _ in _engines):
        release()
    if (model, step_tokens) not in _engines:
        made = next((other.with_step_tokens(step_tokens) for other in _engines.values()), None)
        made = made or _first_engine(model, step_tokens)
        _warm_up(made)
        _engines[model, step_tokens] = made
    return _engines[model, step_tokens]


def release() -> None:
    """Give the memory of all engines back."""
    _engines.clear()
    gc.collect()
    if device().type == "cuda":
        torch.cuda.empty_cache()


def _first_engine(model: str, step_tokens: int) -> BenchmarkEngine:
    decoder = random_decoder(config_from_hf(shapes()[model]), dtype(), device())
    if IS_TOY:
        return BenchmarkEngine(decoder, TOY_KV_BYTES, step_tokens)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device())
    return BenchmarkEngine(decoder, int(free * KV_SHARE), step_tokens, cuda_graph_rows=GRAPH_ROWS)


def _warm_up(made: BenchmarkEngine) -> None:
    """Compile, let the page tables grow to the longest sequences, and only then record."""
    longest = TOY_SIZES["W1-4"] if IS_TOY else Size(GPU_SIZES["W11"].workload, 8)
    made.run(longest.make(), PLANNED)
    if not IS_TOY:
        made.run(Size("W1-16", 64, 0.5).make(), PLANNED)
    made.record_graphs()
