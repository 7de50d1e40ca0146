"""Every launch of a kernel that the parts make, on few rows: what a cache must be filled for.

Each goes through the same functions on the host as in a part, so that types, strides and alignment
are those of the part. No kernel is specialised on the number of rows, so few stand for all.
On a GPU `warm` loads what the parts will launch; without one, see `absent_gpu`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from gpu import models
from gpu.check_kernels import DTYPES, HEADS, SIZES, VOCAB_SIZE
from gpu.machine import IS_TOY, dtype, dtype_name
from gpu.steps import PAGE_SIZE, Heads, decode, make_launch
from gpu.time_kernels import MakeTuning, tunings
from harness.engine_run import BenchmarkEngine, Stepper
from trunkline.engine.kv_cache import kv_bytes_per_token
from trunkline.engine.model.config import config_from_hf
from trunkline.engine.model.weights import assemble, tensor_shapes
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.simulation.simulate import PLANNED
from trunkline.kernels.gpu.add_rms_norm import add_rms_norm, rms_norm
from trunkline.kernels.gpu.rope_and_cache import rope_and_cache
from trunkline.kernels.gpu.sampling import sample_rows
from trunkline.kernels.gpu.silu_mul import silu_mul
from trunkline.kernels.gpu.token_masks import apply_token_masks

Launch = Callable[[torch.device], None]

FP8 = torch.float8_e4m3fn
# Names in `models`, with what a part runs them in.
ENGINES: tuple[tuple[str, torch.dtype], ...] = (
    (("TOY", torch.float32),)
    if IS_TOY
    else (
        ("LLAMA_8B", torch.float32),
        ("SMALL", torch.float32),
        ("LLAMA_8B", torch.bfloat16),
        ("SMALL", torch.bfloat16),
        ("QWEN_7B", torch.bfloat16),
    )
)
# Of the parts, and one whose rows are not aligned.
VOCAB_SIZES = (VOCAB_SIZE, 50_257)
STEP = decode("", 1, 2, 32, 5)
NUM_ROWS = 3
# Of the engine's runs.
MAX_BATCH_TOKENS = 24
NUM_PAGES = 64


def launches() -> dict[str, Launch]:
    """By name. The costliest to compile come first."""
    found: dict[str, Launch] = {}

    def add(name: str, function: Callable[..., None], *arguments: object) -> None:
        found[name] = lambda device: function(*arguments, device)

    # Neighbours are compiled at the same time. Llama and Qwen, which share a kernel, are none.
    every_heads = dict.fromkeys((*HEADS[::2], *HEADS[::-1]))
    for kind in DTYPES:
        for heads in every_heads:
            add(f"attention, {heads.name}, {dtype_name(kind)}", _attention, heads, kind, kind)
    for tuning, make_tuning in tunings(HEADS[0]).items():
        name = f"attention, {HEADS[0].name}, {dtype_name(dtype())}, {tuning}"
        add(name, _attention_of_tuning, HEADS[0], make_tuning)
    if not IS_TOY:
        for heads in every_heads:
            name = f"attention, {heads.name}, {dtype_name(dtype())} over float8"
            add(name, _attention, heads, dtype(), FP8)
    for model, kind in ENGINES:
        add(f"engine, {model}, {dtype_name(kind)}", _engine, model, kind)
    for vocab_size in VOCAB_SIZES:
        for kind in dict.fromkeys((*DTYPES, torch.float32)):
            name = f"{vocab_size}, {dtype_name(kind)}"
            add(f"sample_rows, {name}", _sample_rows, vocab_size, kind)
            add(f"token_masks, {name}", _token_masks, vocab_size, kind)
    for kind in DTYPES:
        for heads in HEADS:
            for cached in (kind, FP8):
                name = f"rope_and_cache, {heads.name}, {dtype_name(kind)} over {dtype_name(cached)}"
                add(name, _rope_and_cache, heads, kind, cached)
        for size in SIZES:
            add(f"norms, {size}, {dtype_name(kind)}", _norms, size, kind)
            add(f"silu_mul, {size // 2}, {dtype_name(kind)}", _silu_mul, size, kind)
    return found


def chosen(texts: Iterable[str]) -> dict[str, Launch]:
    """The launches whose name contains one of the texts; all of them if there is no text.

    Raises:
        SystemExit: a text is in no name.
    """
    every, texts = launches(), list(texts)
    for text in texts:
        if not any(text in name for name in every):
            raise SystemExit(f"no launch has {text!r} in its name")
    return {
        name: launch
        for name, launch in every.items()
        if not texts or any(text in name for text in texts)
    }


def warm(device: torch.device, texts: Iterable[str] = ()) -> None:
    """Launch on `device` whatever `chosen(texts)` has, so that all of it is loaded."""
    for launch in chosen(texts).values():
        launch(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _attention(
    heads: Heads, kind: torch.dtype, kv_dtype: torch.dtype, device: torch.device
) -> None:
    """And the merge of partial results, which is launched whether there are any or not.

    A window is an argument like others: no kernel is specialised on it.
    """
    launch, _ = make_launch(STEP, heads, kind, device, kv_dtype=kv_dtype)
    launch.run()


def _attention_of_tuning(heads: Heads, make_tuning: MakeTuning, device: torch.device) -> None:
    try:
        tuning = make_tuning(device)
    except ValueError:  # the table has none
        return
    launch, _ = make_launch(STEP, heads, dtype(), device, tuning=tuning)
    # Compiled, and then found to need more shared memory than there is.
    with contextlib.suppress(OutOfResources):
        launch.run()


def _norms(size: int, kind: torch.dtype, device: torch.device) -> None:
    x, weight = _ones((NUM_ROWS, size), kind, device), _ones((size,), kind, device)
    rms_norm(x, weight, 1e-5)
    add_rms_norm(x, x, weight, 1e-5)


def _silu_mul(double_size: int, kind: torch.dtype, device: torch.device) -> None:
    silu_mul(_ones((NUM_ROWS, double_size), kind, device))


def _rope_and_cache(
    heads: Heads, kind: torch.dtype, cached: torch.dtype, device: torch.device
) -> None:
    num_rotated = heads.num_heads + heads.num_kv_heads
    qkv = _ones((NUM_ROWS, num_rotated + heads.num_kv_heads, heads.head_dim), kind, device)
    angle = _ones((NUM_ROWS, 1, heads.head_dim), kind, device)
    cache_shape = (2, 1, PAGE_SIZE, heads.num_kv_heads, heads.head_dim)
    keys, values = torch.zeros(cache_shape, dtype=cached, device=device)
    slots = torch.arange(NUM_ROWS, device=device)
    norm = _ones((num_rotated, heads.head_dim), kind, device)
    for qk_norm in (None, norm):
        rope_and_cache(qkv, heads.num_kv_heads, qk_norm, 1e-6, angle, angle, keys, values, slots)


def _sample_rows(vocab_size: int, kind: torch.dtype, device: torch.device) -> None:
    sample_rows(
        _ones((NUM_ROWS, vocab_size), kind, device),
        _ones((NUM_ROWS,), torch.float32, device),
        _ones((NUM_ROWS,), torch.int32, device),
        _ones((NUM_ROWS,), torch.float32, device),
        torch.zeros(NUM_ROWS, device=device),
    )


def _token_masks(vocab_size: int, kind: torch.dtype, device: torch.device) -> None:
    masks = _ones((1, -(-vocab_size // 32)), torch.int32, device)
    mask_of_row = torch.zeros(NUM_ROWS, dtype=torch.int64, device=device)
    apply_token_masks(_ones((NUM_ROWS, vocab_size), kind, device), masks, mask_of_row)


def _engine(model: str, kind: torch.dtype, device: torch.device) -> None:
    """Some sequences on one layer of a model: prefill, decode, and all that sampling can do."""
    whole = getattr(models, model)
    changes = {"num_hidden_layers": 1, "max_position_embeddings": 256, "layer_types": None}
    config = config_from_hf(type(whole)(**{**whole.to_dict(), **changes}))
    tensors = {
        name: torch.zeros(shape, dtype=kind, device=device)
        for name, shape in tensor_shapes(config).items()
    }
    kv_bytes = NUM_PAGES * PAGE_SIZE * kv_bytes_per_token(config, kind)
    engine = BenchmarkEngine(
        assemble(config, tensors), kv_bytes, MAX_BATCH_TOKENS, cuda_graphs=False
    )
    greedy, others = {"max_tokens": 3, "temperature": 0.0}, {"max_tokens": 3}
    for settings in (
        [greedy],
        [greedy, others | {"top_k": 50}, others | {"top_p": 0.9}, others | {"num_top_logprobs": 2}],
        [others | {"logit_bias": ((0, 1.0),)}, others | {"presence_penalty": 1.0}],
    ):
        scheduler = engine.scheduler(PLANNED)
        scheduler.add(
            Sequence(i, 0, np.arange(2 * PAGE_SIZE + i, dtype=np.int32), SamplingParams(**each))
            for i, each in enumerate(settings)
        )
        stepper = Stepper(scheduler, engine.runner)
        while stepper.step():
            pass


def _ones(shape: tuple[int, ...], kind: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(shape, dtype=kind, device=device)
