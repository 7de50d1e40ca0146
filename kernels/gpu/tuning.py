"""The one table of tile shapes: for each class of device, head size and types.

Heads of a size between two rows take the larger. A row that is marked a guess has the largest tiles
that were found to compile without spilling registers and with one or two blocks of keys and
values under way while one is computed; it was never timed. `pipeline` says how that is read off.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

FP8 = torch.float8_e4m3fn
HEAD_SIZES = (64, 128, 256)


@dataclass(frozen=True)
class SmallLaunch:
    """How the smallest tiles are compiled and launched apart from the others.

    They wait for memory, and several programs of few registers on a multiprocessor wait for more of
    it at a time than the one program that the large tiles leave room for.
    """

    keys: int  # of a block
    num_warps: int
    num_stages: int
    programs_per_processor: int


@dataclass(frozen=True)
class Launch:
    """One launch of the attention kernel, for some kinds of tile that follow one another."""

    first_kind: int
    kind_lines: tuple[int, ...]
    kind_keys: tuple[int, ...]
    num_warps: int
    num_stages: int
    programs_per_processor: int

    def constexprs(
        self, precision: str, page_size: int, head_dim: int, *, has_soft_cap: bool
    ) -> dict[str, object]:
        """What the kernel is compiled for."""
        return {
            "page_size": page_size,
            "head_dim": head_dim,
            # At least 16: what the matrix units take.
            "padded_dim": max(1 << (head_dim - 1).bit_length(), 16),
            "has_soft_cap": has_soft_cap,
            "precision": precision,
            "first_kind": self.first_kind,
            "kind_lines": self.kind_lines,
            "kind_keys": self.kind_keys,
        }


@dataclass(frozen=True)
class Tuning:
    """How the attention kernel is compiled and launched."""

    kind_lines: tuple[int, ...]  # lines of a tile of each kind, falling; powers of two from 16 on
    kind_keys: tuple[int, ...]  # keys of a block, for each kind; powers of two from 16 on
    num_warps: int
    num_stages: int
    programs_per_processor: int
    source: str  # "measured" or "guess"
    precision: str = "ieee"  # of products of float32
    reads_fp8_as_bits: bool = False  # the device has no conversion from e4m3
    small: SmallLaunch | None = None  # of the last kind; None: one launch does all kinds

    @functools.cached_property
    def launches(self) -> tuple[Launch, ...]:
        """The launches that do all kinds together, the large tiles' first."""
        lines, keys = self.kind_lines, self.kind_keys
        shape = (self.num_warps, self.num_stages, self.programs_per_processor)
        if self.small is None:
            return (Launch(0, lines, keys, *shape),)
        last, small = len(lines) - 1, self.small
        small_shape = (small.num_warps, small.num_stages, small.programs_per_processor)
        return (
            Launch(0, lines[:last], keys[:last], *shape),
            Launch(last, lines[last:], (small.keys,), *small_shape),
        )

    @property
    def kind_key_cost(self) -> tuple[float, ...]:
        """Cost of a key, for each kind.

        A small tile waits for memory about as long as one of 64 lines computes.
        """
        return tuple(max(lines, 64) / 64 for lines in self.kind_lines)


@dataclass(frozen=True)
class TuningKey:
    """What a row is for."""

    architecture: str
    head_dim: int
    element_bytes: int  # of a query
    is_fp8_cache: bool


def _guess(
    kind_lines: tuple[int, ...],
    kind_keys: tuple[int, ...],
    num_stages: int,
    *,
    num_warps: int = 8,
    precision: str = "ieee",
    as_bits: bool = False,
) -> Tuning:
    """A row that nobody has measured, of one program for each processor."""
    return Tuning(kind_lines, kind_keys, num_warps, num_stages, 1, "guess", precision, as_bits)


# Three products of tensorfloat-32 are nearly as exact as float32, which CUDA's units do not take.
_TF32 = "tf32x3"

_ROWS: dict[TuningKey, Tuning] = {
    TuningKey("sm_80", 64, 2, False): _guess((128, 64, 16), (64, 64, 64), 4),
    TuningKey("sm_80", 64, 2, True): _guess((128, 64, 16), (64, 64, 64), 4, as_bits=True),
    TuningKey("sm_80", 64, 4, False): _guess((32, 16), (32, 32), 3, precision=_TF32),
    TuningKey("sm_80", 128, 2, False): _guess((128, 64, 16), (32, 64, 64), 3),
    TuningKey("sm_80", 128, 2, True): _guess((128, 64, 16), (32, 64, 64), 4, as_bits=True),
    TuningKey("sm_80", 128, 4, False): _guess((32, 16), (16, 16), 3, precision=_TF32),
    TuningKey("sm_80", 256, 2, False): _guess((64, 16), (16, 32), 3),
    TuningKey("sm_80", 256, 2, True): _guess((64, 16), (32, 32), 3, as_bits=True),
    TuningKey("sm_80", 256, 4, False): _guess((16,), (16,), 3, precision=_TF32),
    TuningKey("sm_90", 64, 2, False): _guess((128, 64, 16), (64, 64, 64), 4),
    TuningKey("sm_90", 64, 2, True): _guess((128, 64, 16), (64, 64, 64), 4),
    TuningKey("sm_90", 64, 4, False): _guess((32, 16), (32, 32), 3, precision=_TF32),
    TuningKey("sm_90", 128, 2, False): _guess((128, 64, 16), (64, 64, 64), 4),
    TuningKey("sm_90", 128, 2, True): _guess((128, 64, 16), (32, 32, 64), 4),
    TuningKey("sm_90", 128, 4, False): _guess((32, 16), (32, 32), 3, precision=_TF32),
    TuningKey("sm_90", 256, 2, False): _guess((128, 16), (32, 64), 3),
    TuningKey("sm_90", 256, 2, True): _guess((128, 16), (32, 64), 4),
    TuningKey("sm_90", 256, 4, False): _guess((16,), (16,), 3, precision=_TF32),
    TuningKey("gfx942", 64, 2, False): _guess((128, 64, 16), (64, 64, 64), 2, num_warps=4),
    TuningKey("gfx942", 64, 2, True): _guess((128, 64, 16), (64, 64, 64), 2, num_warps=4),
    TuningKey("gfx942", 64, 4, False): _guess((64, 16), (32, 32), 2, num_warps=4),
    TuningKey("gfx942", 128, 2, False): _guess((128, 64, 16), (64, 64, 64), 2, num_warps=4),
    TuningKey("gfx942", 128, 2, True): _guess((128, 64, 16), (64, 64, 64), 2, num_warps=4),
    TuningKey("gfx942", 128, 4, False): _guess((32, 16), (32, 32), 2, num_warps=4),
    TuningKey("gfx942", 256, 2, False): _guess((64, 16), (32, 32), 2, num_warps=4),
    TuningKey("gfx942", 256, 2, True): _guess((64, 16), (32, 32), 2, num_warps=4),
    TuningKey("gfx942", 256, 4, False): _guess((16,), (16,), 2, num_warps=4),
}

# For rows whose smallest tiles may have a launch of their own, of as many programs as their
# registers and shared memory leave room for. Nobody has measured whether they should: a row that it
# is found to be faster for gets it as its own.
_SMALL_LAUNCHES: dict[TuningKey, SmallLaunch] = {
    TuningKey("sm_80", 64, 2, False): SmallLaunch(32, 4, 4, 3),
    TuningKey("sm_80", 64, 2, True): SmallLaunch(32, 4, 4, 4),
    TuningKey("sm_80", 128, 2, False): SmallLaunch(32, 4, 3, 2),
    TuningKey("sm_80", 128, 2, True): SmallLaunch(32, 4, 4, 3),
    TuningKey("sm_90", 64, 2, False): SmallLaunch(32, 4, 4, 4),
    TuningKey("sm_90", 64, 2, True): SmallLaunch(32, 4, 4, 4),
    TuningKey("sm_90", 128, 2, False): SmallLaunch(32, 4, 4, 3),
    TuningKey("sm_90", 128, 2, True): SmallLaunch(32, 4, 4, 3),
    TuningKey("gfx942", 64, 2, False): SmallLaunch(32, 4, 2, 4),
    TuningKey("gfx942", 64, 2, True): SmallLaunch(32, 4, 2, 4),
    TuningKey("gfx942", 128, 2, False): SmallLaunch(32, 4, 2, 3),
    TuningKey("gfx942", 128, 2, True): SmallLaunch(32, 4, 2, 3),
}


def find_tuning(
    architecture: str,
    head_dim: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    *,
    is_small_apart: bool = False,
) -> Tuning:
    """The row for heads of a size.

    Args:
        architecture: see `launch.architecture`.
        head_dim: size of a head.
        dtype: of the queries.
        kv_dtype: of the cache.
        is_small_apart: with a launch of their own for the smallest tiles.

    Raises:
        ValueError: there is none.
    """
    types = (dtype, kv_dtype)
    is_fp8_cache = kv_dtype == FP8
    known = dtype in (torch.bfloat16, torch.float16, torch.float32)
    if not known or not (kv_dtype == dtype or (is_fp8_cache and dtype.itemsize == 2)):
        raise ValueError(
            f"query and cache of types {types}: the attention kernel takes bfloat16 and float16 "
            "with a cache of that type or of float8_e4m3fn, and float32 with float32"
        )
    sizes = [size for size in HEAD_SIZES if size >= head_dim]
    if not sizes:
        raise ValueError(
            f"heads of size {head_dim}: the attention kernel takes sizes up to {HEAD_SIZES[-1]}"
        )
    key = TuningKey(architecture, sizes[0], dtype.itemsize, is_fp8_cache)
    if not is_small_apart:
        return _ROWS[key]
    if key not in _SMALL_LAUNCHES:
        raise ValueError(f"{key}: there is no launch for its smallest tiles alone")
    return replace(_ROWS[key], small=_SMALL_LAUNCHES[key])


def all_rows() -> Iterator[tuple[TuningKey, Tuning]]:
    """The table, and its rows with a launch apart for the smallest tiles where there is one."""
    yield from _ROWS.items()
    for key, small in _SMALL_LAUNCHES.items():
        yield key, replace(_ROWS[key], small=small)
