"""What this device achieves: the rates that predictions are made with."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from trunkline.engine.model.config import ModelConfig
from trunkline.engine.simulation.hardware import Hardware, ModelShape

GEMM_SIZE = {"cpu": 1024, "cuda": 8192}
COPY_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}
REPEATS = 3


def measure_device(device: torch.device, dtype: torch.dtype, memory_bytes: float) -> Hardware:
    """Time a large product and a large copy. Takes a fraction of a second.

    Args:
        memory_bytes: what weights and KV cache have together.
    """
    size = GEMM_SIZE[device.type]
    a = torch.randn(size, size, device=device, dtype=dtype)
    source = torch.zeros(COPY_BYTES[device.type], device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    gemm = _best_seconds(device, lambda: torch.mm(a, a))
    copy = _best_seconds(device, lambda: target.copy_(source))
    return Hardware(
        name=str(device),
        flops=2.0 * size**3 / gemm,
        bandwidth=2.0 * len(source) / copy,  # read and written
        memory_bytes=memory_bytes,
        step_seconds=0.0,
        is_measured=True,
        gpu_bytes=_gpu_bytes(device),
    )


def _gpu_bytes(device: torch.device) -> float:
    if device.type != "cuda":
        return 0.0
    return float(torch.cuda.get_device_properties(device).total_memory)


def shape_of(config: ModelConfig) -> ModelShape:
    """The sizes of a loaded model, as the cost model takes them."""
    return ModelShape(
        name=config.model_type,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
    )


def _best_seconds(device: torch.device, operation: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        _wait(device)
        started = time.perf_counter()
        operation()
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
