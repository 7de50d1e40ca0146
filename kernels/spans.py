"""Which rows attend to which keys, as the kernels take it: numpy arrays on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SpanList:
    """The spans of one step. Together a row's spans cover the positions 0..its own, each once.

    The rows ``[row_start, row_end)`` of a span attend to the positions ``[kv_start, kv_end)``,
    found in the page table of entry ``entry``. In a causal span the rows are consecutive positions
    of one sequence, the last of them ``kv_end - 1``, and see the keys up to their own position; in
    any other span every row sees every key.
    """

    row_start: NDArray[np.int64]  # [num_spans] row
    row_end: NDArray[np.int64]  # [num_spans] row, exclusive
    entry: NDArray[np.int64]  # [num_spans] row of page_tables
    kv_start: NDArray[np.int64]  # [num_spans] token position
    kv_end: NDArray[np.int64]  # [num_spans] token position, exclusive
    causal: NDArray[np.bool_]  # [num_spans]
    positions: NDArray[np.int64]  # [num_rows] token position of each row
    page_tables: NDArray[np.int64]  # [num_entries, max_pages] page, -1 unused
    page_size: int  # tokens

    @property
    def num_spans(self) -> int:
        return len(self.row_start)

    @property
    def num_rows(self) -> int:
        return len(self.positions)
