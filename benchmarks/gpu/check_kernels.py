"""Part `kernels`: every Triton kernel against its specification, on the shapes of real models.

What the engine cannot do without comes first: attention with Llama's heads in bfloat16, a cache of
float8, sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from gpu.machine import IS_TOY, device, dtype, dtype_name, relative_error
from gpu.parts import Case, Record
from gpu.steps import (
    LARGE,
    LLAMA,
    QWEN,
    SMALL,
    TOY,
    Group,
    Heads,
    Step,
    decode,
    make_launch,
    mixed,
    prefill,
)
from trunkline.kernels import reference
from trunkline.kernels.gpu.add_rms_norm import add_rms_norm, rms_norm
from trunkline.kernels.gpu.launch import architecture
from trunkline.kernels.gpu.rope_and_cache import rope_and_cache
from trunkline.kernels.gpu.sampling import sample_rows
from trunkline.kernels.gpu.silu_mul import silu_mul
from trunkline.kernels.gpu.token_masks import apply_token_masks
from trunkline.kernels.gpu.tuning import find_tuning

# Norm of the error over the norm of the result.
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
# Of sampled tokens: the last bits of an exponential may move a boundary.
MOST_OTHER_TOKENS = 0.005

if IS_TOY:
    STEPS: tuple[Step, ...] = (
        decode("decode, groups of 3", 2, 3, 32, 5),
        prefill("chunks below a prefix", 1, 2, 16, 9),
    )
    HEADS: tuple[Heads, ...] = (TOY,)
    DTYPES: tuple[torch.dtype, ...] = (torch.float32,)
    NUM_ROWS, VOCAB_SIZE = 3, 500
    SIZES: tuple[int, ...] = (64,)
else:
    STEPS = (
        decode("decode, groups of 16", 16, 16, 2000, 250),
        decode("decode, groups of 256", 1, 256, 2000, 129),
        decode("decode, nothing shared", 32, 1, 0, 1000),
        decode("decode, long contexts", 3, 1, 0, 65_537),
        prefill("prefill, nothing shared", 1, 2, 0, 1025),
        prefill("chunks below a prefix", 4, 4, 2000, 200),
        mixed(
            "everything at once",
            decode("", 3, 7, 992, 33),
            prefill("", 1, 3, 496, 77),
            Step("", (Group(0, ((0, 1), (700, 300), (15, 1))),)),
        ),
    )
    HEADS = (LLAMA, QWEN, SMALL, LARGE)
    DTYPES = (torch.bfloat16, torch.float16)
    NUM_ROWS, VOCAB_SIZE, SIZES = 777, 128_256, (576, 3584, 4096, 8192)


# The interpreter's products in bfloat16 are wrong.
HALF = torch.float16 if IS_TOY else torch.bfloat16
WINDOW = 512
# Temperature, top_k, top_p.
SAMPLINGS = ((0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 50, 1.0), (1.0, 0, 0.9))


@dataclass(frozen=True)
class Check:
    """One comparison."""

    case: str
    error: float
    tolerance: float

    @property
    def is_good(self) -> bool:
        return self.error <= self.tolerance


def check_attention(
    heads: Heads,
    kind: torch.dtype,
    step: Step,
    window: int | None = None,
    *,
    is_small_apart: bool = False,
) -> Iterator[Check]:
    """With the table's tuning, or with a launch apart for the smallest tiles, which it has not."""
    tuning = None
    if is_small_apart:
        tuning = find_tuning(
            architecture(device()), heads.head_dim, kind, kind, is_small_apart=True
        )
    launch, spans = make_launch(step, heads, kind, device(), window=window, tuning=tuning)
    wanted = reference.paged_attention(
        launch.query, launch.key_cache, launch.value_cache, spans, heads.head_dim**-0.5, window
    )
    name = _attention_name(heads, kind, step, window)
    yield Check(
        f"{name}, smallest tiles apart" if is_small_apart else name,
        relative_error(launch.run(), wanted),
        TOLERANCES[kind],
    )


def _attention_name(heads: Heads, kind: torch.dtype, step: Step, window: int | None = None) -> str:
    name = f"attention, {heads.name}, {dtype_name(kind)}, {step.name}"
    return name if window is None else f"{name}, window of {window}"


def check_float8_cache(heads: Heads, step: Step) -> Iterator[Check]:
    kind = HALF
    launch, spans = make_launch(step, heads, kind, device(), kv_dtype=torch.float8_e4m3fn)
    key, value = launch.key_cache.to(kind), launch.value_cache.to(kind)  # exact
    scale = heads.head_dim**-0.5
    wanted = reference.paged_attention(launch.query, key, value, spans, scale)
    case = f"attention, {heads.name}, {dtype_name(kind)} over float8, {step.name}"
    yield Check(case, relative_error(launch.run(), wanted), TOLERANCES[kind])


def check_norms(size: int, kind: torch.dtype) -> Iterator[Check]:
    x, residual = _normal(NUM_ROWS, size, kind=kind), _normal(NUM_ROWS, size, kind=kind)
    weight = _normal(size, kind=kind)
    found, total = add_rms_norm(x, residual, weight, 1e-5)
    wanted, wanted_total = reference.add_rms_norm(x, residual, weight, 1e-5)
    error = max(relative_error(found, wanted), relative_error(total, wanted_total))
    yield Check(f"add_rms_norm, {size}, {dtype_name(kind)}", error, TOLERANCES[kind])
    error = relative_error(rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    yield Check(f"rms_norm, {size}, {dtype_name(kind)}", error, TOLERANCES[kind])


def check_silu_mul(size: int, kind: torch.dtype) -> Iterator[Check]:
    x = _normal(NUM_ROWS, size, kind=kind)
    error = relative_error(silu_mul(x), reference.silu_mul(x))
    yield Check(f"silu_mul, {size // 2}, {dtype_name(kind)}", error, TOLERANCES[kind])


def check_rope(heads: Heads, kind: torch.dtype) -> Iterator[Check]:
    for has_norm in (False, True):
        num_pages = NUM_ROWS // 16 + 2
        qkv = _normal(NUM_ROWS, heads.num_heads + 2 * heads.num_kv_heads, heads.head_dim, kind=kind)
        caches = torch.zeros(
            2, num_pages, 16, heads.num_kv_heads, heads.head_dim, dtype=kind, device=device()
        )
        wanted_caches = caches.clone()
        angle = torch.rand(NUM_ROWS, heads.head_dim // 2, device=device()) * 6.0
        cos, sin = angle.cos().to(kind), angle.sin().to(kind)
        slots = torch.randperm(num_pages * 16, device=device())[:NUM_ROWS]
        slots[NUM_ROWS // 2] = -1
        rotated_heads = heads.num_heads + heads.num_kv_heads
        norm = _normal(rotated_heads, heads.head_dim, kind=kind) if has_norm else None
        query = rope_and_cache(
            qkv,
            heads.num_kv_heads,
            norm,
            1e-6,
            torch.cat([cos, cos], 1).unsqueeze(1),
            torch.cat([-sin, sin], 1).unsqueeze(1),
            caches[0],
            caches[1],
            slots,
        )
        rotated, value = qkv[:, :rotated_heads], qkv[:, rotated_heads:]
        if norm is not None:
            rotated = reference.rms_norm(rotated, norm, 1e-6)
        rotated = reference.rope(rotated, cos, sin)
        wanted, key = rotated[:, : heads.num_heads], rotated[:, heads.num_heads :]
        reference.write_kv(key, value, wanted_caches[0], wanted_caches[1], slots)
        error = max(relative_error(query, wanted), relative_error(caches, wanted_caches))
        name = f"rope_and_cache, {heads.name}, {dtype_name(kind)}"
        yield Check(f"{name}, with a norm" if has_norm else name, error, TOLERANCES[kind])


def check_sampling(temperature: float, top_k: int, top_p: float) -> Iterator[Check]:
    """With the types of the engine."""
    rows = min(NUM_ROWS, 256)
    logits = 3.0 * _normal(rows, VOCAB_SIZE, kind=dtype())
    settings = (
        torch.full((rows,), temperature, device=device()),
        torch.full((rows,), top_k, dtype=torch.int32, device=device()),
        torch.full((rows,), top_p, device=device()),
        torch.randint(0, 2**24, (rows,), device=device()).float() / 2**24,
    )
    found = sample_rows(logits, *settings)
    wanted = reference.sample_rows(logits.float(), *settings)
    yield Check(
        f"sample_rows, temperature {temperature}, top_k {top_k}, top_p {top_p}",
        float((found != wanted).float().mean()),
        MOST_OTHER_TOKENS if temperature else 0.0,
    )


def check_token_masks(kind: torch.dtype) -> Iterator[Check]:
    rows, masks = min(NUM_ROWS, 256), 7
    logits = _normal(rows, VOCAB_SIZE, kind=kind)
    words = torch.randint(-(2**31), 2**31 - 1, (masks, -(-VOCAB_SIZE // 32)), device=device())
    mask_of_row = torch.randint(-1, masks, (rows,), device=device())
    arguments = (logits, words.to(torch.int32), mask_of_row)
    found, wanted = apply_token_masks(*arguments), reference.apply_token_masks(*arguments)
    yield Check(
        f"apply_token_masks, {dtype_name(kind)}", float((found != wanted).float().mean()), 0.0
    )


Checks = Iterator[tuple[str, Callable[[], Iterator[Check]]]]


def all_checks() -> Checks:
    """Each with a name, the most telling first."""
    first = DTYPES[0]
    yield from _attention_checks(HEADS[0], first)
    for step in STEPS[:2]:
        yield f"float8 cache, {step.name}", partial(check_float8_cache, HEADS[0], step)
    for temperature, top_k, top_p in SAMPLINGS:
        name = f"sample_rows, temperature {temperature}, top_k {top_k}, top_p {top_p}"
        yield name, partial(check_sampling, temperature, top_k, top_p)
    for step in (STEPS[0], STEPS[-1]):
        apart = partial(check_attention, HEADS[0], HALF, step, is_small_apart=True)
        yield f"smallest tiles apart, {step.name}", apart
    for kind in DTYPES:
        if kind != first:
            yield from _attention_checks(HEADS[0], kind)
        name = dtype_name(kind)
        for size in SIZES:
            yield f"norms, {size}, {name}", partial(check_norms, size, kind)
            yield f"silu_mul, {size // 2}, {name}", partial(check_silu_mul, size, kind)
        yield f"apply_token_masks, {name}", partial(check_token_masks, kind)
        for heads in HEADS:
            yield f"rope_and_cache, {heads.name}, {name}", partial(check_rope, heads, kind)
        yield from _attention_checks(HEADS[0], kind, WINDOW)
        for heads in HEADS[1:]:
            yield from _attention_checks(heads, kind)


def _attention_checks(heads: Heads, kind: torch.dtype, window: int | None = None) -> Checks:
    for step in STEPS:
        name = _attention_name(heads, kind, step, window)
        yield name, partial(check_attention, heads, kind, step, window)


def cases() -> Iterator[Case]:
    torch.manual_seed(0)

    def records(check: Callable[[], Iterator[Check]]) -> Iterator[Record]:
        return (asdict(result) | {"is_good": result.is_good} for result in check())

    for name, check in all_checks():
        yield Case(name, partial(records, check))


def line(record: Record) -> str:
    verdict = "ok" if record["is_good"] else "WRONG"
    return f"{verdict:6}{record['error']:.1e}  {record['case']}"


def _normal(*shape: int, kind: torch.dtype) -> Tensor:
    return torch.randn(shape, device=device()).to(kind)
