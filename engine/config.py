"""Every setting of the engine: one table, resolved once, frozen."""

from __future__ import annotations

import os
import socket
from enum import StrEnum
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from trunkline.engine.model.load_format import LoadFormat
from trunkline.engine.ordering import Order
from trunkline.engine.planner import Grouping, Sharing
from trunkline.engine.scheduler_config import Policy
from trunkline.store.model_names import DEFAULT_MODEL


class Device(StrEnum):
    """Where the model runs."""

    AUTO = "auto"  # a CUDA GPU if there is one
    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    """The number format of weights and activations, and of the KV cache unless it has its own."""

    AUTO = "auto"  # bfloat16 on GPUs and on CPUs with instructions for it, else float32
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class KVCacheDtype(StrEnum):
    """The number format of the KV cache."""

    AUTO = "auto"  # that of the activations
    FP8 = "fp8"  # float8 e4m3: half the memory, on GPUs with Triton


class EngineConfig(BaseSettings):
    """How the engine runs. Units are in the names: tokens, bytes, seconds."""

    model_config = SettingsConfigDict(env_prefix="TRUNKLINE_", frozen=True, extra="ignore")

    model: str = Field(
        DEFAULT_MODEL,
        description="Model: the embedded default's name, a Hugging Face id, a folder with "
        "safetensors, or a .gguf file.",
    )
    served_model_name: str | None = Field(
        None, description="Name that requests use; the model's own name unless given."
    )
    cache_dir: Path = Field(
        Path("~/.cache/trunkline"), description="Folder for fetched and converted models."
    )
    device: Device = Field(Device.AUTO, description="Where the model runs.")
    dtype: Dtype = Field(Dtype.AUTO, description="Number format of weights and activations.")
    load_format: LoadFormat = Field(LoadFormat.AUTO, description="How the weights are stored.")
    max_model_tokens: int | None = Field(
        None, ge=1, description="Longest sequence; the model's context unless given. Tokens."
    )
    page_size: int = Field(16, ge=1, le=1024, description="Tokens per page of the KV cache.")
    kv_cache_bytes: int | None = Field(
        None,
        ge=1,
        description="Size of the KV cache; unless given, what is left on a GPU, or a quarter of "
        "the available memory of a CPU machine (a container's limit counts). Bytes.",
    )
    kv_cache_dtype: KVCacheDtype = Field(
        KVCacheDtype.AUTO,
        description="Number format of the KV cache; that of the activations, or fp8 (e4m3) on a "
        "GPU with Triton. fp8 keys and values are stored with scale 1, whatever the model: rounded "
        "to the nearest e4m3 number, and as ±448 where they are beyond.",
    )
    max_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Token budget of a step, and the most sequences at once; unless given, what "
        "keeps the device's arithmetic busy, at least 8192 on a GPU with 70 GB and more. Tokens.",
    )
    scheduler: Policy = Field(Policy.PLANNED, description="How sequences enter the batch.")
    prefix_sharing: Sharing = Field(
        Sharing.PLANNED, description="What is done about prompts that begin alike."
    )
    order: Order | None = Field(
        None,
        description="Order of requests; planned for the planned scheduler, else that of arrival, "
        "unless given.",
    )
    grouping: Grouping = Field(
        Grouping.EXACT, description="Which shared prefixes attention reads once for all requests."
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads; one per usable core unless given."
    )
    cuda_graphs: bool = Field(
        True, description="Record the launches of a step on a GPU and replay them."
    )
    cuda_graph_rows: int = Field(
        4096,
        ge=1,
        description="Steps of up to so many rows are recorded, where steps are; larger ones are "
        "launched anew. More take longer to record and more of the GPU's memory. Rows.",
    )
    engine_name: str = Field(
        default_factory=lambda: f"engine-{socket.gethostname()}-{os.getpid()}",
        description="Name of this engine in the store; must differ between engines.",
    )
    lease_seconds: float = Field(
        30.0, gt=0, description="A claimed batch is free again so long after the last heartbeat."
    )
    poll_seconds: float = Field(0.5, gt=0, description="Pause between two looks for work.")
    commit_seconds: float = Field(
        0.5, gt=0, description="An outcome waits at most so long to be committed."
    )
    max_held_requests: int = Field(
        100_000, ge=1, description="No further batch is claimed while so many are unfinished."
    )
