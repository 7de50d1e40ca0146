"""Part `kernel-bench`: each kernel's time, and how close it comes to the device's measured rates.

Bytes and operations are those that the work cannot do without: every cached token that is needed
is read once, every query-key pair is computed once. The share is the least time, by the measured
rates of a large copy and a large product, over the time taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gpu.machine import IS_TOY, device, dtype, hardware, microseconds, write_results
from gpu.steps import LLAMA, QWEN, TOY, Heads, Step, decode, make_launch, mixed, prefill
from trunkline.kernels.gpu.add_rms_norm import add_rms_norm
from trunkline.kernels.gpu.rope_and_cache import rope_and_cache
from trunkline.kernels.gpu.sampling import sample_rows
from trunkline.kernels.gpu.silu_mul import silu_mul

if IS_TOY:
    HEADS: tuple[Heads, ...] = (TOY,)
    STEPS: tuple[Step, ...] = (decode("decode, groups of 2", 1, 2, 32, 5),)
    NUM_ROWS, HIDDEN, INTERMEDIATE, VOCAB_SIZE, SAMPLED_ROWS = 3, 64, 96, 500, 2
    PROMPT = 9
else:
    HEADS = (LLAMA, QWEN)
    STEPS = (
        decode("decode, 512 rows in groups of 1", 512, 1, 0, 2250),
        decode("decode, 512 rows in groups of 16", 32, 16, 2000, 250),
        decode("decode, 512 rows in groups of 64", 8, 64, 2000, 250),
        decode("decode, 512 rows in groups of 256", 2, 256, 2000, 250),
        decode("decode, 16 rows of 65536", 16, 1, 0, 65_535),
        prefill("prefill, 4 prompts of 2048", 4, 1, 0, 2048),
        prefill("prefill, 32 of 200 below 2000", 2, 16, 2000, 200),
        mixed(
            "384 decode rows and 4096 of prefill",
            decode("", 24, 16, 2000, 250),
            prefill("", 2, 1, 0, 2048),
        ),
    )
    NUM_ROWS, HIDDEN, INTERMEDIATE, VOCAB_SIZE, SAMPLED_ROWS = 8192, 4096, 14_336, 128_256, 512
    PROMPT = 2048


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


def time_attention(heads: Heads, step: Step, kv_dtype: torch.dtype | None = None) -> Timing:
    launch, _ = make_launch(step, heads, dtype(), device(), kv_dtype=kv_dtype)
    key_bytes = heads.head_dim * launch.key_cache.itemsize
    kv_bytes = 2 * step.keys_read * heads.num_kv_heads * key_bytes
    row_bytes = 2 * launch.query.nbytes
    flops = 4.0 * heads.num_heads * heads.head_dim * step.pairs
    other = None
    if any(group.prefix for group in step.groups):
        alone, _ = make_launch(step, heads, dtype(), device(), kv_dtype=kv_dtype, is_shared=False)
        other = ("the same without sharing the reads", alone.run)
    cached = "" if kv_dtype is None else ", float8 cache"
    case = f"attention, {heads.name}, {step.name}{cached}"
    return timing(case, launch.run, kv_bytes + row_bytes, flops, other)


def time_prefill_beside_torch(heads: Heads) -> Timing:
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
    return timing(case, launch.run, num_bytes, flops, ("torch's fused attention, dense", dense))


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


def time_sampling() -> Iterator[Timing]:
    logits = _normal(SAMPLED_ROWS, VOCAB_SIZE)
    rows = (SAMPLED_ROWS,)
    uniform = torch.randint(0, 2**24, rows, device=device()).float() / 2**24

    def softmax() -> Tensor:
        return torch.multinomial(torch.softmax(logits.float(), -1), 1)

    def sorted_top_p() -> Tensor:
        ordered, index = torch.softmax(logits.float(), -1).sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= 0.9] = 0
        return index.gather(1, torch.multinomial(ordered, 1))

    for name, temperature, top_k, top_p, other in (
        ("greedy", 0.0, 0, 1.0, ("torch's argmax", lambda: logits.argmax(-1))),
        ("free", 1.0, 0, 1.0, ("torch's softmax and multinomial", softmax)),
        ("top_k 50", 1.0, 50, 1.0, None),
        ("top_p 0.9", 1.0, 0, 0.9, ("torch's sort and multinomial", sorted_top_p)),
    ):
        settings = (
            torch.full(rows, temperature, device=device()),
            torch.full(rows, top_k, dtype=torch.int64, device=device()),
            torch.full(rows, top_p, device=device()),
            uniform,
        )
        yield timing(
            f"sample_rows, {SAMPLED_ROWS} x {VOCAB_SIZE}, {name}",
            lambda settings=settings: sample_rows(logits, *settings),  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            float(logits.nbytes),
            0.0,
            other,
        )


def time_products(heads: Heads) -> Iterator[Timing]:
    """The linear layers' products, which are torch's: what the kernels stand beside."""
    width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    weight = _normal(width, HIDDEN)
    for num_rows in (SAMPLED_ROWS, NUM_ROWS):
        x = _normal(num_rows, HIDDEN)
        yield timing(
            f"product of q, k and v, {num_rows} x {HIDDEN} x {width}",
            lambda x=x: torch.nn.functional.linear(x, weight),  # type: ignore[misc]  # as above
            float(weight.nbytes + x.nbytes + num_rows * width * x.itemsize),
            2.0 * num_rows * HIDDEN * width,
        )


def all_timings() -> Iterator[Timing]:
    for heads in HEADS:
        for step in STEPS:
            yield time_attention(heads, step)
        yield time_prefill_beside_torch(heads)
    if not IS_TOY:  # the interpreter has float32 queries here, which take no such cache
        for step in STEPS[:2]:
            yield time_attention(HEADS[0], step, torch.float8_e4m3fn)
    yield from time_small_operations(HEADS[0])
    yield from time_sampling()
    yield from time_products(HEADS[0])


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=device()).to(dtype())


def main() -> None:
    rates = hardware()
    print(
        f"measured: {rates.flops / 1e12:.1f} TFLOP/s of a large product, "
        f"{rates.bandwidth / 1e12:.2f} TB/s of a large copy"
    )
    timings = []
    for one in all_timings():
        timings.append(one)
        ratio = "" if one.ratio is None else f"; {one.compared_with}: {one.ratio:.2f} x its time"
        print(
            f"{one.microseconds:10.1f} us {one.gb_per_second:8.0f} GB/s {one.tflops:7.1f} TFLOP/s "
            f"{one.share_of_peak:6.1%} of peak  {one.case}{ratio}"
        )
    write_results("kernel-bench", map(asdict, timings))


if __name__ == "__main__":
    main()
