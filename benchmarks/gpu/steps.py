"""Attention steps of real shapes: groups of sequences below a shared prefix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from trunkline.kernels.gpu.attention import paged_attention
from trunkline.kernels.gpu.device_work import DeviceWork
from trunkline.kernels.gpu.tuning import Tuning
from trunkline.kernels.spans import SpanList

PAGE_SIZE = 16


@dataclass(frozen=True)
class Heads:
    """Attention heads of a model."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int


LLAMA = Heads("Llama-3.1-8B", 32, 8, 128)
QWEN = Heads("Qwen2.5-7B", 28, 4, 128)
SMALL = Heads("heads of 64", 9, 3, 64)
LARGE = Heads("heads of 256", 16, 8, 256)
TOY = Heads("toy", 4, 2, 32)


@dataclass(frozen=True)
class Group:
    """Sequences that share the first tokens.

    Attributes:
        prefix: tokens that all share, a multiple of the page size; computed before.
        members: (own tokens computed before, new tokens) of each. New tokens are the rows.
    """

    prefix: int
    members: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Step:
    """What the rows of one step attend to."""

    name: str
    groups: tuple[Group, ...] = field(repr=False)

    @property
    def num_rows(self) -> int:
        return sum(new for group in self.groups for _, new in group.members)

    @property
    def keys_read(self) -> int:
        """Cached tokens that must be read at least once."""
        return sum(
            group.prefix + sum(own + new for own, new in group.members) for group in self.groups
        )

    @property
    def pairs(self) -> float:
        """Query-key pairs."""
        return float(
            sum(
                new * (group.prefix + own) + new * (new + 1) / 2
                for group in self.groups
                for own, new in group.members
            )
        )

    def spans(self, seed: int = 0, *, is_shared: bool = True) -> SpanList:
        """The step as the kernels take it, on randomly placed pages.

        Args:
            seed: of the places.
            is_shared: False: every row reads its prefix for itself, from the same pages.
        """
        spans: list[tuple[int, int, int, int, int, bool]] = []
        positions: list[int] = []
        tables: list[list[int]] = []
        pages = iter(np.random.default_rng(seed).permutation(self.num_pages).tolist())
        for group in self.groups:
            shared = [next(pages) for _ in range(group.prefix // PAGE_SIZE)]
            first_row, first_entry = len(positions), len(tables)
            num_rows = sum(new for _, new in group.members)
            start = group.prefix if is_shared else 0
            if start:
                spans.append((first_row, first_row + num_rows, first_entry, 0, start, False))
            for own, new in group.members:
                row, end = len(positions), group.prefix + own + new
                spans.append((row, row + new, len(tables), start, end, True))
                own_pages = -(-(own + new) // PAGE_SIZE)
                tables.append([*shared, *(next(pages) for _ in range(own_pages))])
                positions.extend(range(end - new, end))
        width = max(map(len, tables))
        columns = np.array(spans, np.int64).T
        return SpanList(
            row_start=columns[0],
            row_end=columns[1],
            entry=columns[2],
            kv_start=columns[3],
            kv_end=columns[4],
            causal=columns[5].astype(np.bool_),
            positions=np.array(positions, np.int64),
            page_tables=np.array([t + [-1] * (width - len(t)) for t in tables], np.int64),
            page_size=PAGE_SIZE,
        )

    @property
    def num_pages(self) -> int:
        return sum(
            group.prefix // PAGE_SIZE
            + sum(-(-(own + new) // PAGE_SIZE) for own, new in group.members)
            for group in self.groups
        )


def decode(name: str, num_groups: int, size: int, prefix: int, own: int) -> Step:
    """One new token for each member."""
    return Step(name, (Group(prefix, ((own, 1),) * size),) * num_groups)


def prefill(name: str, num_groups: int, size: int, prefix: int, new: int) -> Step:
    """A chunk of `new` tokens for each member."""
    return Step(name, (Group(prefix, ((0, new),) * size),) * num_groups)


def mixed(name: str, *steps: Step) -> Step:
    groups: Iterable[Group] = (group for step in steps for group in step.groups)
    return Step(name, tuple(groups))


@dataclass(frozen=True)
class Launch:
    """A step's tensors on the device, ready to run."""

    query: Tensor  # [num_rows, num_heads, head_dim]
    key_cache: Tensor  # [num_pages, page_size, num_kv_heads, head_dim]
    value_cache: Tensor
    work: DeviceWork
    page_tables: Tensor  # [num_entries, max_pages] int32

    def run(self) -> Tensor:
        scale = self.query.shape[-1] ** -0.5
        return paged_attention(
            self.query, self.key_cache, self.value_cache, self.work, self.page_tables, scale
        )


def make_launch(
    step: Step,
    heads: Heads,
    dtype: torch.dtype,
    device: torch.device,
    *,
    kv_dtype: torch.dtype | None = None,
    window: int | None = None,
    is_shared: bool = True,
    tuning: Tuning | None = None,
) -> tuple[Launch, SpanList]:
    """Random queries, keys and values for `step`; see `Step.spans` for `is_shared`.

    Args:
        step: what attends to what.
        heads: of the model.
        dtype: of the queries.
        device: where the tensors go.
        kv_dtype: of keys and values; None: the queries'.
        window: positions that a row sees, its own included; None: all.
        is_shared: whether shared prefixes are read once.
        tuning: how the kernel is compiled and launched; None: as the table says.
    """
    spans = step.spans(is_shared=is_shared)
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    cache_shape = (step.num_pages, PAGE_SIZE, heads.num_kv_heads, heads.head_dim)
    work = DeviceWork(
        device,
        heads.num_heads,
        heads.num_kv_heads,
        heads.head_dim,
        max_rows=step.num_rows,
        window=window,
        dtype=dtype,
        kv_dtype=kv_dtype,
        tuning=tuning,
    )
    work.load(spans)
    launch = Launch(
        query=normal(step.num_rows, heads.num_heads, heads.head_dim),
        key_cache=normal(*cache_shape).to(kv_dtype or dtype),
        value_cache=normal(*cache_shape).to(kv_dtype or dtype),
        work=work,
        page_tables=torch.from_numpy(spans.page_tables.astype(np.int32)).to(device),
    )
    return launch, spans
