"""Part `kernels`: every Triton kernel against its specification, on the shapes of real models."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gpu.machine import IS_TOY, device, dtype, relative_error, write_results
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
from trunkline.kernels.gpu.rope_and_cache import rope_and_cache
from trunkline.kernels.gpu.sampling import sample_rows
from trunkline.kernels.gpu.silu_mul import silu_mul
from trunkline.kernels.gpu.token_masks import apply_token_masks

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


@dataclass(frozen=True)
class Check:
    """One comparison."""

    case: str
    error: float
    tolerance: float

    @property
    def is_good(self) -> bool:
        return self.error <= self.tolerance


def check_attention(heads: Heads, kind: torch.dtype) -> Iterator[Check]:
    scale = heads.head_dim**-0.5
    for step in STEPS:
        for window in (None, 512) if heads is HEADS[0] else (None,):
            launch, spans = make_launch(step, heads, kind, device(), window=window)
            found = launch.run()
            wanted = reference.paged_attention(
                launch.query, launch.key_cache, launch.value_cache, spans, scale, window
            )
            name = f"attention, {heads.name}, {_name(kind)}, {step.name}"
            yield Check(
                name if window is None else f"{name}, window of {window}",
                relative_error(found, wanted),
                TOLERANCES[kind],
            )
            del launch, found, wanted


def check_float8_cache(heads: Heads) -> Iterator[Check]:
    """The interpreter's products in bfloat16 are wrong, so there in float16."""
    kind = torch.float16 if IS_TOY else torch.bfloat16
    for step in STEPS[:2]:
        launch, spans = make_launch(step, heads, kind, device(), kv_dtype=torch.float8_e4m3fn)
        key, value = launch.key_cache.to(kind), launch.value_cache.to(kind)  # exact
        scale = heads.head_dim**-0.5
        wanted = reference.paged_attention(launch.query, key, value, spans, scale)
        case = f"attention, {heads.name}, {_name(kind)} over float8, {step.name}"
        yield Check(case, relative_error(launch.run(), wanted), TOLERANCES[kind])


def check_small_operations(kind: torch.dtype) -> Iterator[Check]:
    for size in SIZES:
        x, residual = _normal(NUM_ROWS, size, kind=kind), _normal(NUM_ROWS, size, kind=kind)
        weight = _normal(size, kind=kind)
        found, total = add_rms_norm(x, residual, weight, 1e-5)
        wanted, wanted_total = reference.add_rms_norm(x, residual, weight, 1e-5)
        error = max(relative_error(found, wanted), relative_error(total, wanted_total))
        yield Check(f"add_rms_norm, {size}, {_name(kind)}", error, TOLERANCES[kind])
        error = relative_error(rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
        yield Check(f"rms_norm, {size}, {_name(kind)}", error, TOLERANCES[kind])
        error = relative_error(silu_mul(residual), reference.silu_mul(residual))
        yield Check(f"silu_mul, {size // 2}, {_name(kind)}", error, TOLERANCES[kind])


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
        name = f"rope_and_cache, {heads.name}, {_name(kind)}"
        yield Check(f"{name}, with a norm" if has_norm else name, error, TOLERANCES[kind])


def check_sampling() -> Iterator[Check]:
    rows = min(NUM_ROWS, 256)
    for temperature, top_k, top_p in ((0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 50, 1.0), (1.0, 0, 0.9)):
        logits = 3.0 * _normal(rows, VOCAB_SIZE, kind=dtype())
        settings = (
            torch.full((rows,), temperature, device=device()),
            torch.full((rows,), top_k, dtype=torch.int64, device=device()),
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
    yield Check(f"apply_token_masks, {_name(kind)}", float((found != wanted).float().mean()), 0.0)


def all_checks() -> Iterator[Check]:
    torch.manual_seed(0)
    for kind in DTYPES:
        yield from check_small_operations(kind)
        yield from check_token_masks(kind)
        for heads in HEADS:
            yield from check_rope(heads, kind)
            yield from check_attention(heads, kind)
    yield from check_float8_cache(HEADS[0])
    yield from check_sampling()


def _normal(*shape: int, kind: torch.dtype) -> Tensor:
    return torch.randn(shape, device=device()).to(kind)


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def main() -> None:
    checks = []
    for check in all_checks():
        checks.append(check)
        verdict = "ok" if check.is_good else "WRONG"
        print(f"{verdict:6}{check.error:.1e}  {check.case}")
    write_results("kernels", [asdict(check) | {"is_good": check.is_good} for check in checks])
    wrong = sum(not check.is_good for check in checks)
    if wrong:
        sys.exit(f"{wrong} of {len(checks)} results are wrong")


if __name__ == "__main__":
    main()
