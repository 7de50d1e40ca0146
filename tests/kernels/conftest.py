"""The compiled CPU kernels, and steps: chains of prefixes with chunks and decode tokens below."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np
import pytest

from tests.support import missing
from trunkline.kernels import native
from trunkline.kernels.cpu_isa import has_avx512_bf16
from trunkline.kernels.native import NativeLibrary
from trunkline.kernels.spans import SpanList

CaseMaker = Callable[..., SpanList]


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here."""


@pytest.fixture
def library() -> NativeLibrary:
    """The compiled CPU kernels, on a CPU for which there are some; else the run's end says so."""
    if not has_avx512_bf16():
        pytest.skip("there are no compiled kernels for the CPU, or for what may be used of it")
    if not any(map(shutil.which, native.COMPILERS)):
        missing("there is no C++ compiler")
    found = native.library()
    assert found is not None, "the compiled CPU kernels cannot be built"
    return found


@pytest.fixture
def make_spans() -> CaseMaker:
    return random_spans


def random_spans(
    rng: np.random.Generator,
    page_size: int,
    groups: list[tuple[list[int], list[tuple[int, int]]]],
    *,
    consecutive_pages: bool = False,
) -> SpanList:
    """A step over groups of sequences that share a chain of prefixes.

    Args:
        groups: for each group, the pages of each node of its chain (root first) and its members:
            (own computed tokens, new tokens). New tokens are the member's rows.
        consecutive_pages: number the pages in the order of use, else at random.
    """
    spans: list[tuple[int, int, int, int, int, bool]] = []
    positions: list[int] = []
    tables: list[list[int]] = []
    num_pages = sum(
        sum(chain) + sum(-(-(own + new) // page_size) for own, new in members)
        for chain, members in groups
    )
    free = list(range(num_pages) if consecutive_pages else rng.permutation(num_pages))
    for chain, members in groups:
        shared = [free.pop(0) for _ in range(sum(chain))]
        first_row, first_entry = len(positions), len(tables)
        num_rows = sum(new for _, new in members)
        start = 0
        for num_node_pages in chain:
            end = start + num_node_pages * page_size
            spans.append((first_row, first_row + num_rows, first_entry, start, end, False))
            start = end
        for own, new in members:
            own_pages = -(-(own + new) // page_size)
            tables.append(shared + [free.pop(0) for _ in range(own_pages)])
            row = len(positions)
            end = start + own + new
            spans.append((row, row + new, len(tables) - 1, start, end, True))
            positions.extend(range(end - new, end))
    columns = list(zip(*spans, strict=True))
    width = max(map(len, tables))
    padded = np.array([table + [-1] * (width - len(table)) for table in tables], np.int64)
    return SpanList(
        *(np.array(column, np.int64) for column in columns[:5]),
        causal=np.array(columns[5], np.bool_),
        positions=np.array(positions, np.int64),
        page_tables=padded,
        page_size=page_size,
    )
