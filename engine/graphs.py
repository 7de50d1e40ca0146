"""CUDA graphs: the launches of a step's decoder, recorded once for a number of rows and replayed.

A step of few rows is through in less time than the host takes for its hundreds of launches; one
replay stands for all of them. A graph has fixed shapes and addresses, so the rows are padded to one
of a few numbers, and all that the launches read lies where it lay when they were recorded.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

import torch

# A step of more rows keeps the device busy for longer than the host takes for the launches.
MOST_ROWS = 4096
# The thread that makes masks allocates pinned memory at any time. With torch's default mode that is
# an error while a graph is recorded, in that thread and in the recording; with this one only what
# the recording thread itself does counts.
CAPTURE_ERROR_MODE = "thread_local"
# Rows are padded by at most one part in so many, from 64 rows on.
PARTS = 8


def can_record(device: torch.device) -> bool:
    """Whether launches on the device can be recorded."""
    return device.type == "cuda"


def padded_sizes(most_rows: int) -> list[int]:
    """The numbers of rows that there are graphs for, rising to `most_rows`."""
    sizes, size = [], 1
    while size < most_rows:
        sizes.append(size)
        size += size if size < PARTS else max(1 << size.bit_length() - 1 >> 3, PARTS)
    return [*sizes, most_rows]


class Graphs:
    """Graphs by number of rows, in one memory pool; only one of them runs at a time."""

    def __init__(self, most_rows: int) -> None:
        """Record nothing yet.

        Args:
            most_rows: a step of more is not recorded, and not padded.
        """
        self._sizes = padded_sizes(most_rows)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._is_launched: set[int] = set()  # sizes whose kernels are compiled and loaded

    def padded(self, num_rows: int) -> int:
        """The number of rows that `num_rows` are padded to."""
        at = bisect.bisect_left(self._sizes, num_rows)
        return self._sizes[at] if at < len(self._sizes) else num_rows

    def run(self, num_rows: int, launch: Callable[[], object]) -> None:
        """Do what `launch` does, which depends on nothing but `num_rows` and device memory.

        The second time for a number of rows it is recorded: many numbers come only once.
        """
        graph = self._graphs.get(num_rows)
        if graph is not None:
            graph.replay()
            return
        launch()
        if num_rows in self._is_launched:
            self.record(num_rows, launch)
        elif num_rows <= self._sizes[-1]:
            self._is_launched.add(num_rows)

    def record(self, num_rows: int, launch: Callable[[], object]) -> None:
        """Record what `launch` does, which has been done for `num_rows` at least once.

        The largest is best recorded first: the memory of its intermediate results serves all.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode=CAPTURE_ERROR_MODE):
            launch()
        self._graphs[num_rows] = graph

    def drop(self) -> None:
        """Forget all graphs, because something that they read has moved."""
        if self._graphs:
            torch.cuda.synchronize()
            self._graphs.clear()
            # A pool goes with the last of its graphs.
            self._pool = torch.cuda.graph_pool_handle()
