"""Puts an engine together from its configuration: model, cache, scheduler, runner, admission."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from trunkline.engine.admission import Admission, Limits
from trunkline.engine.answering import AnswerEngine, LineAdmission, Summariser
from trunkline.engine.calibration import measure_device, shape_of
from trunkline.engine.config import Device, EngineConfig, KVCacheDtype
from trunkline.engine.core import Engine
from trunkline.engine.default_model import ModelNotFoundError, resolve_model
from trunkline.engine.encoder.assemble import assemble_encoder
from trunkline.engine.encoder.config import is_encoder
from trunkline.engine.gpu_memory import measure_kv_budget, warm_up
from trunkline.engine.gpu_runner import GpuRunner
from trunkline.engine.grammar import Grammars
from trunkline.engine.host_memory import available_bytes
from trunkline.engine.kv_cache import KVCache, allocate_kv_cache, num_pages_for
from trunkline.engine.model.config import UnsupportedModelError
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.model.weights import (
    LoadedModel,
    WeightsError,
    load_model,
    resolve_dtype,
)
from trunkline.engine.plan_summary import PlanSummariser
from trunkline.engine.pooling import read_pooling
from trunkline.engine.prompt_reading import Pooling
from trunkline.engine.runner import Runner, configure_host
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.step_runner import StepRunner
from trunkline.engine.tokenizer import Tokenizer
from trunkline.kernels.cpu_isa import max_cpu_isa
from trunkline.kernels.gpu.launch import triton_for
from trunkline.kernels.gpu.tuning import FP8
from trunkline.options import ConfigError
from trunkline.store.model_names import served_name

# Of the memory that is available once the weights are loaded.
CPU_KV_SHARE = 0.25
# Of a GPU's, where Triton is missing and nothing is known of what a step takes.
TORCH_KV_SHARE = 0.7


@dataclass(frozen=True)
class Assembly:
    """A ready engine and what there is to say about it."""

    engine: AnswerEngine
    admission: LineAdmission
    model_name: str  # what requests call it
    device: str
    dtype: str
    max_model_tokens: int
    kv_cache_tokens: int  # 0 where the model needs no cache
    summariser: Summariser
    load_seconds: float


def assemble(config: EngineConfig) -> Assembly:
    """Load the model and build the engine.

    Raises:
        ConfigError: the model or the device is not there, the cache is too small, or
            TRUNKLINE_MAX_CPU_ISA is malformed.
    """
    started = time.perf_counter()
    device = _device(config.device)
    _check_cpu_isa()
    configure_host(config.threads or len(os.sched_getaffinity(0)))
    try:
        folder = resolve_model(config.model, config.cache_dir.expanduser())
        dtype = resolve_dtype(config.dtype, device)
        if is_encoder(folder):
            return _assemble_encoder(config, folder, dtype, device, started)
        tokenizer = _tokenizer(folder)
        pooling = read_pooling(folder, Pooling.LAST)
        model = load_model(folder, dtype, device, config.load_format)
    except (ModelNotFoundError, WeightsError, UnsupportedModelError, FileNotFoundError) as error:
        raise ConfigError(f"--model {config.model}: {error}") from error
    max_model_tokens = min(
        config.max_model_tokens or model.config.max_context_tokens, model.config.max_context_tokens
    )
    kv_dtype = _kv_dtype(config.kv_cache_dtype, model.decoder)
    hardware = measure_device(device, dtype, memory_bytes=0.0)
    max_batch_tokens = config.max_batch_tokens or hardware.step_tokens
    try:
        kv_bytes = config.kv_cache_bytes or _free_kv_bytes(
            model.decoder, kv_dtype, config.page_size, max_batch_tokens
        )
        num_pages = num_pages_for(model.config, kv_dtype, config.page_size, kv_bytes)
        cache = allocate_kv_cache(model.config, kv_dtype, device, num_pages, config.page_size)
        runner = make_runner(model.decoder, cache, max_batch_tokens, config)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    hardware = dataclasses.replace(hardware, memory_bytes=_memory_bytes(cache, model))
    scheduler_config = SchedulerConfig(
        page_size=config.page_size,
        num_pages=num_pages,
        max_batch_tokens=max_batch_tokens,
        policy=config.scheduler,
        sharing=config.prefix_sharing,
        order=config.order,
        grouping=config.grouping,
    )
    limits = Limits(max_model_tokens, scheduler_config.capacity_tokens)
    grammars = Grammars(tokenizer, model.config.vocab_size)
    return Assembly(
        engine=Engine(scheduler_config, runner, tokenizer, grammars),
        admission=Admission(tokenizer, limits, grammars, pooling, model.config.hidden_size),
        model_name=config.served_model_name or served_name(config.model),
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        max_model_tokens=max_model_tokens,
        kv_cache_tokens=scheduler_config.capacity_tokens,
        summariser=PlanSummariser(scheduler_config, hardware, shape_of(model.config)),
        load_seconds=time.perf_counter() - started,
    )


def _assemble_encoder(
    config: EngineConfig, folder: Path, dtype: torch.dtype, device: torch.device, started: float
) -> Assembly:
    encoder = assemble_encoder(
        folder,
        dtype,
        device,
        config.load_format,
        config.max_model_tokens,
        config.max_batch_tokens,
    )
    return Assembly(
        engine=encoder.engine,
        admission=encoder.admission,
        model_name=config.served_model_name or served_name(config.model),
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        max_model_tokens=encoder.max_model_tokens,
        kv_cache_tokens=0,
        summariser=encoder.summariser,
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


def _check_cpu_isa() -> None:
    try:
        max_cpu_isa()
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _tokenizer(folder: Path) -> Tokenizer:
    try:
        return Tokenizer(folder)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{folder} has no tokenizer that transformers can load") from error


def _kv_dtype(wanted: KVCacheDtype, decoder: Decoder) -> torch.dtype:
    if wanted is KVCacheDtype.AUTO:
        return decoder.dtype
    if not triton_for(decoder.embedding):
        raise ConfigError(
            f"--kv-cache-dtype is {wanted.value!r}, which takes a GPU and Triton; the device here "
            f"is {str(decoder.device)!r}, use 'auto'"
        )
    return FP8


def _free_kv_bytes(
    decoder: Decoder, kv_dtype: torch.dtype, page_size: int, max_batch_tokens: int
) -> int:
    if decoder.device.type == "cpu":
        return int(available_bytes() * CPU_KV_SHARE)
    if triton_for(decoder.embedding):
        return measure_kv_budget(decoder, kv_dtype, page_size, max_batch_tokens)
    free, _ = torch.cuda.mem_get_info(decoder.device)
    return int(free * TORCH_KV_SHARE)


def make_runner(
    decoder: Decoder, cache: KVCache, max_batch_tokens: int, config: EngineConfig
) -> StepRunner:
    """The runner for the decoder's device, ready to run at full speed."""
    if not triton_for(decoder.embedding):
        return Runner(decoder, cache)
    runner = GpuRunner(
        decoder,
        cache,
        max_batch_tokens=max_batch_tokens,
        cuda_graphs=config.cuda_graphs,
        cuda_graph_rows=config.cuda_graph_rows,
    )
    warm_up(runner)
    return runner
