"""Part `kernel-bench`: each kernel's time, and how close it comes to the device's measured rates.

Bytes and operations are those that the work cannot do without: every cached token that is needed
is read once, every query-key pair is computed once. The share is the least time, by the measured
rates of a large copy and a large product, over the time taken.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from gpu.machine import IS_TOY, device, dtype, hardware, microseconds
from gpu.parts import Case, Record
from gpu.steps import (
    LLAMA,
    QWEN,
    TOY,
    Heads,
    Launch,
    Step,
    decode,
    make_launch,
    mixed,
    prefill,
)
from trunkline.kernels.gpu.add_rms_norm import add_rms_norm
from trunkline.kernels.gpu.launch import architecture
from trunkline.kernels.gpu.rope_and_cache import rope_and_cache
from trunkline.kernels.gpu.sampling import sample_rows
from trunkline.kernels.gpu.silu_mul import silu_mul
from trunkline.kernels.gpu.tuning import Tuning, find_tuning

if IS_TOY:
    HEADS: tuple[Heads, ...] = (TOY,)
    FIRST_STEPS: tuple[Step, ...] = (decode("decode, groups of 2", 1, 2, 32, 5),)
    MIXED = mixed("decode and prefill", decode("", 1, 2, 32, 5), prefill("", 1, 1, 0, 9))
    OTHER_STEPS: tuple[Step, ...] = ()
    SWEPT_STEPS: tuple[Step, ...] = FIRST_STEPS
    SWEPT_STAGES: tuple[int, ...] = (2,)
    NUM_ROWS, HIDDEN, INTERMEDIATE, VOCAB_SIZE = 3, 64, 96, 500
    SAMPLED_ROWS: tuple[int, ...] = (2,)
    PROMPT = 9
else:
    HEADS = (LLAMA, QWEN)
    FIRST_STEPS = (
        decode("decode, 512 rows in groups of 1", 512, 1, 0, 2250),
        decode("decode, 512 rows in groups of 16", 32, 16, 2000, 250),
        decode("decode, 512 rows in groups of 256", 2, 256, 2000, 250),
        decode("decode, 16 rows of 65536", 16, 1, 0, 65_535),
    )
    MIXED = mixed(
        "384 decode rows and 4096 of prefill",
        decode("", 24, 16, 2000, 250),
        prefill("", 2, 1, 0, 2048),
    )
    OTHER_STEPS = (
        decode("decode, 512 rows in groups of 64", 8, 64, 2000, 250),
        prefill("prefill, 32 of 200 below 2000", 2, 16, 2000, 200),
    )
    SWEPT_STEPS = (
        FIRST_STEPS[1],
        FIRST_STEPS[0],
        prefill("prefill, 4 prompts of 2048", 4, 1, 0, 2048),
    )
    SWEPT_STAGES = (2, 3, 5)  # the table has 4
    NUM_ROWS, HIDDEN, INTERMEDIATE, VOCAB_SIZE = 8192, 4096, 14_336, 128_256
    SAMPLED_ROWS = (512, 2000)
    PROMPT = 2048


# Temperature, top_k, top_p; the dearest first.
SAMPLINGS = {
    "top_p 0.9": (1.0, 0, 0.9),
    "top_k 50": (1.0, 50, 1.0),
    "free": (1.0, 0, 1.0),
    "greedy": (0.0, 0, 1.0),
}


# Raises a ValueError where there is none for the device.
MakeTuning = Callable[[torch.device], Tuning]


@dataclass(frozen=True)
class Timing:
    """One kernel on one shape."""

    case: str
    microseconds: float
    gb_per_second: float
    tflops: float
    share_of_peak: float
    compared_with: str | None = None  # another way to compute the same
    ratio: float | None = None  # its time over this one


def timing(
    case: str,
    operation: Callable[[], object],
    num_bytes: float,
    flops: float = 0.0,
    other: tuple[str, Callable[[], object]] | None = None,
) -> Timing:
    taken = microseconds(operation)
    seconds = taken / 1e6
    least = max(num_bytes / hardware().bandwidth, flops / hardware().flops)
    return Timing(
        case=case,
        microseconds=round(taken, 2),
        gb_per_second=round(num_bytes / seconds / 1e9, 1),
        tflops=round(flops / seconds / 1e12, 2),
        share_of_peak=round(least / seconds, 4),
        compared_with=other[0] if other else None,
        ratio=round(microseconds(other[1]) / taken, 3) if other else None,
    )


def time_attention(
    heads: Heads, step: Step, kv_dtype: torch.dtype | None = None
) -> Iterator[Timing]:
    launch, _ = make_launch(step, heads, dtype(), device(), kv_dtype=kv_dtype)
    other = None
    if any(group.prefix for group in step.groups):
        alone, _ = make_launch(step, heads, dtype(), device(), kv_dtype=kv_dtype, is_shared=False)
        other = ("the same without sharing the reads", alone.run)
    cached = "" if kv_dtype is None else ", float8 cache"
    case = f"attention, {heads.name}, {step.name}{cached}"
    yield timing(case, launch.run, *attention_work(heads, step, launch), other)


def tunings(heads: Heads) -> dict[str, MakeTuning]:
    """What is tried in place of the table's row, by name."""

    def with_stages(num_stages: int, device: torch.device) -> Tuning:
        return dataclasses.replace(find(device), num_stages=num_stages)

    def find(device: torch.device, *, is_small_apart: bool = False) -> Tuning:
        return find_tuning(
            architecture(device), heads.head_dim, dtype(), dtype(), is_small_apart=is_small_apart
        )

    found: dict[str, MakeTuning] = {
        f"{stages} stages": partial(with_stages, stages) for stages in SWEPT_STAGES
    }
    return found | {"smallest tiles apart": partial(find, is_small_apart=True)}


def time_tuning(heads: Heads, step: Step, name: str, make_tuning: MakeTuning) -> Iterator[Timing]:
    """With another tuning than the table's, where there is one and shared memory allows it."""
    case = f"attention, {heads.name}, {step.name}, {name}"
    try:
        tuning = make_tuning(device())
    except ValueError as error:
        print(f"not measured: {case}: {error}", file=sys.stderr)
        return
    launch, _ = make_launch(step, heads, dtype(), device(), tuning=tuning)
    try:
        launch.run()
    except OutOfResources as error:
        print(f"not measured: {case}: {error}", file=sys.stderr)
        return
    yield timing(case, launch.run, *attention_work(heads, step, launch))


def attention_work(heads: Heads, step: Step, launch: Launch) -> tuple[float, float]:
    """(bytes, operations) that the step cannot do without."""
    key_bytes = heads.head_dim * launch.key_cache.itemsize
    kv_bytes = 2 * step.keys_read * heads.num_kv_heads * key_bytes
    flops = 4.0 * heads.num_heads * heads.head_dim * step.pairs
    return float(kv_bytes + 2 * launch.query.nbytes), flops


def time_prefill_beside_torch(heads: Heads) -> Iterator[Timing]:
    """Four prompts, beside the fused attention of torch on the same tensors laid out densely."""
    step = prefill(f"prefill, 4 prompts of {PROMPT}, beside torch", 4, 1, 0, PROMPT)
    launch, _ = make_launch(step, heads, dtype(), device())
    query = launch.query.view(4, PROMPT, heads.num_heads, heads.head_dim).transpose(1, 2)
    key, value = (
        torch.randn(4, heads.num_kv_heads, PROMPT, heads.head_dim, dtype=dtype(), device=device())
        for _ in range(2)
    )

    def dense() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )

    flops = 4.0 * heads.num_heads * heads.head_dim * step.pairs
    num_bytes = float(2 * launch.query.nbytes + 2 * key.nbytes)
    case = f"attention, {heads.name}, {step.name}"
    yield timing(case, launch.run, num_bytes, flops, ("torch's fused attention, dense", dense))


def time_small_operations(heads: Heads) -> Iterator[Timing]:
    kind = dtype()
    x, residual = _normal(NUM_ROWS, HIDDEN), _normal(NUM_ROWS, HIDDEN)
    weight = _normal(HIDDEN)
    yield timing(
        f"add_rms_norm, {NUM_ROWS} x {HIDDEN}",
        lambda: add_rms_norm(x, residual, weight, 1e-5),
        4.0 * x.nbytes,
    )
    gate_up = _normal(NUM_ROWS, 2 * INTERMEDIATE)
    yield timing(
        f"silu_mul, {NUM_ROWS} x {INTERMEDIATE}", lambda: silu_mul(gate_up), 1.5 * gate_up.nbytes
    )
    qkv = _normal(NUM_ROWS, heads.num_heads + 2 * heads.num_kv_heads, heads.head_dim)
    angle = torch.rand(NUM_ROWS, 1, heads.head_dim, device=device()).to(kind)
    num_pages = NUM_ROWS // 16 + 1
    keys, values = _normal(2, num_pages, 16, heads.num_kv_heads, heads.head_dim)
    slots = torch.randperm(num_pages * 16, device=device())[:NUM_ROWS]
    yield timing(
        f"rope_and_cache, {NUM_ROWS} rows, {heads.name}",
        lambda: rope_and_cache(
            qkv, heads.num_kv_heads, None, 1e-5, angle, angle, keys, values, slots
        ),
        2.0 * qkv.nbytes + 2.0 * angle.nbytes,
    )


def time_sampling(num_rows: int, way: str) -> Iterator[Timing]:
    """One of SAMPLINGS, with the types of the engine."""
    temperature, top_k, top_p = SAMPLINGS[way]
    logits = _normal(num_rows, VOCAB_SIZE)
    settings = (
        torch.full((num_rows,), temperature, device=device()),
        torch.full((num_rows,), top_k, dtype=torch.int32, device=device()),
        torch.full((num_rows,), top_p, device=device()),
        torch.randint(0, 2**24, (num_rows,), device=device()).float() / 2**24,
    )

    def softmax() -> Tensor:
        return torch.multinomial(torch.softmax(logits.float(), -1), 1)

    def sorted_top_p() -> Tensor:
        ordered, index = torch.softmax(logits.float(), -1).sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= 0.9] = 0
        return index.gather(1, torch.multinomial(ordered, 1))

    others: dict[str, tuple[str, Callable[[], object]]] = {
        "greedy": ("torch's argmax", lambda: logits.argmax(-1)),
        "free": ("torch's softmax and multinomial", softmax),
        "top_p 0.9": ("torch's sort and multinomial", sorted_top_p),
    }
    yield timing(
        f"sample_rows, {num_rows} x {VOCAB_SIZE}, {way}",
        lambda: sample_rows(logits, *settings),
        float(logits.nbytes),
        0.0,
        others.get(way),
    )


def time_products(heads: Heads) -> Iterator[Timing]:
    """The linear layers' products, which are torch's: what the kernels stand beside."""
    width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    weight = _normal(width, HIDDEN)
    for num_rows in (SAMPLED_ROWS[0], NUM_ROWS):
        x = _normal(num_rows, HIDDEN)
        yield timing(
            f"product of q, k and v, {num_rows} x {HIDDEN} x {width}",
            lambda x=x: torch.nn.functional.linear(x, weight),  # type: ignore[misc]  # as above
            float(weight.nbytes + x.nbytes + num_rows * width * x.itemsize),
            2.0 * num_rows * HIDDEN * width,
        )


def all_timings() -> Iterator[tuple[str, Callable[[], Iterator[Timing]]]]:
    """Each with a name, the most telling first."""
    first = HEADS[0]
    for step in FIRST_STEPS:
        yield step.name, partial(time_attention, first, step)
    yield "prefill beside torch", partial(time_prefill_beside_torch, first)
    yield MIXED.name, partial(time_attention, first, MIXED)
    for step in SWEPT_STEPS:
        for name, tuning in tunings(first).items():
            yield f"{step.name}, {name}", partial(time_tuning, first, step, name, tuning)
    yield "small operations", partial(time_small_operations, first)
    for num_rows in SAMPLED_ROWS[::-1]:
        for way in SAMPLINGS:
            yield f"sample_rows, {num_rows}, {way}", partial(time_sampling, num_rows, way)
    yield "products", partial(time_products, first)
    if not IS_TOY:  # the interpreter has float32 queries here, which take no such cache
        for step in FIRST_STEPS[:2]:
            float8 = partial(time_attention, first, step, torch.float8_e4m3fn)
            yield f"{step.name}, float8 cache", float8
    for step in OTHER_STEPS:
        yield step.name, partial(time_attention, first, step)
    for heads in HEADS[1:]:
        for step in (*FIRST_STEPS, MIXED, *OTHER_STEPS):
            yield f"{heads.name}, {step.name}", partial(time_attention, heads, step)
        yield f"{heads.name}, prefill beside torch", partial(time_prefill_beside_torch, heads)


def cases() -> Iterator[Case]:
    def records(measure: Callable[[], Iterator[Timing]]) -> Iterator[Record]:
        return map(asdict, measure())

    for name, measure in all_timings():
        yield Case(name, partial(records, measure))


def line(record: Record) -> str:
    ratio = record["ratio"]
    other = "" if ratio is None else f"; {record['compared_with']}: {ratio:.2f} x its time"
    return (
        f"{record['microseconds']:10.1f} us {record['gb_per_second']:8.0f} GB/s "
        f"{record['tflops']:7.1f} TFLOP/s {record['share_of_peak']:6.1%} of peak  "
        f"{record['case']}{other}"
    )


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=device()).to(dtype())
