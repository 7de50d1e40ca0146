"""Puts an engine together from its configuration: model, cache, scheduler, runner, admission."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from trunkline.engine.admission import Admission, Limits
from trunkline.engine.calibration import measure_device, shape_of
from trunkline.engine.config import Device, EngineConfig
from trunkline.engine.core import Engine
from trunkline.engine.default_model import ModelNotFoundError, resolve_model
from trunkline.engine.kv_cache import KVCache, allocate_kv_cache, num_pages_for
from trunkline.engine.model.config import UnsupportedModelError
from trunkline.engine.model.weights import (
    LoadedModel,
    WeightsError,
    load_model,
    resolve_dtype,
)
from trunkline.engine.plan_summary import PlanSummariser
from trunkline.engine.runner import Runner, configure_host
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.tokenizer import Tokenizer
from trunkline.options import ConfigError
from trunkline.store.model_names import served_name

# Of the memory that is free once the weights are loaded.
CPU_KV_SHARE = 0.25
CUDA_KV_SHARE = 0.85


@dataclass(frozen=True)
class Assembly:
    """A ready engine and what there is to say about it."""

    engine: Engine
    admission: Admission
    model_name: str  # what requests call it
    device: str
    dtype: str
    max_model_tokens: int
    summariser: PlanSummariser
    load_seconds: float


def assemble(config: EngineConfig) -> Assembly:
    """Load the model and build the engine.

    Raises:
        ConfigError: the model or the device is not there, or the cache is too small.
    """
    started = time.perf_counter()
    device = _device(config.device)
    configure_host(config.threads or len(os.sched_getaffinity(0)))
    try:
        folder = resolve_model(config.model, config.cache_dir.expanduser())
        dtype = resolve_dtype(config.dtype, device)
        model = load_model(folder, dtype, device, config.load_format)
    except (ModelNotFoundError, WeightsError, UnsupportedModelError, FileNotFoundError) as error:
        raise ConfigError(f"--model {config.model}: {error}") from error
    max_model_tokens = min(
        config.max_model_tokens or model.config.max_context_tokens, model.config.max_context_tokens
    )
    try:
        num_pages = num_pages_for(
            model.config,
            dtype,
            config.page_size,
            config.kv_cache_bytes or _free_kv_bytes(device),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    cache = allocate_kv_cache(model.config, dtype, device, num_pages, config.page_size)
    hardware = measure_device(device, dtype, _memory_bytes(cache, model))
    scheduler_config = SchedulerConfig(
        page_size=config.page_size,
        num_pages=num_pages,
        max_batch_tokens=config.max_batch_tokens or hardware.step_tokens,
        policy=config.scheduler,
        sharing=config.prefix_sharing,
        order=config.order,
        grouping=config.grouping,
    )
    tokenizer = Tokenizer(folder)
    limits = Limits(max_model_tokens, scheduler_config.capacity_tokens)
    return Assembly(
        engine=Engine(scheduler_config, Runner(model.decoder, cache), tokenizer),
        admission=Admission(tokenizer, limits),
        model_name=config.served_model_name or served_name(config.model),
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        max_model_tokens=max_model_tokens,
        summariser=PlanSummariser(scheduler_config, hardware, shape_of(model.config)),
        load_seconds=time.perf_counter() - started,
    )


def _memory_bytes(cache: KVCache, model: LoadedModel) -> float:
    """What weights and KV cache have together."""
    kv_bytes = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
    return float(kv_bytes + shape_of(model.config).weight_bytes)


def _device(wanted: Device) -> torch.device:
    if wanted is Device.CUDA and not torch.cuda.is_available():
        raise ConfigError("--device is 'cuda', but torch finds no CUDA device here; use 'cpu'")
    if wanted is Device.CPU or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


def _free_kv_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * CUDA_KV_SHARE)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(free * CPU_KV_SHARE)
