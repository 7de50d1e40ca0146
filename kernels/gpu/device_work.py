"""The attention work of a step in the device's memory, at addresses that stay.

Everything that depends on the step is in one buffer of int32, so that one copy brings it over and
launches that were captured in a graph find the next step's work where they found the last one's:

    0  query heads of a KV head       16  items, 8 columns each: row_start, row_end, entry,
    1  num_merged                         kv_start, kv_end, causal, first partial result or -1,
    2  where positions begin              and one unused
    3  merged_rows                        positions        [num_rows]
    4  merged_start                       merged_rows      [num_merged]
    5  merged_partials                    merged_start     [num_merged + 1]
    6  where the items of each kind       merged_partials  [num_partials]
       of tile end, one after the other

`work_list` says what these are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trunkline.kernels.gpu.launch import architecture, num_processors
from trunkline.kernels.gpu.tuning import Launch, Tuning, find_tuning
from trunkline.kernels.spans import SpanList
from trunkline.kernels.work_list import Tiling, WorkList, build_work_list

HEADER_SIZE = 16
ITEM_SIZE = 8
# Keys are split where pages and blocks of keys begin.
PART_MULTIPLE = 128
MIN_PART_KEYS = 512
ITEMS_PER_WORKER = 4
# Behind every position that 32 bits are used for.
ALL_POSITIONS = 2**30


class DeviceWork:
    """The work of one step at a time, for all layers with the same window."""

    def __init__(
        self,
        device: torch.device,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        max_rows: int,
        window: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        kv_dtype: torch.dtype | None = None,
        max_items: int | None = None,
        max_partials: int | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        """Allocate the buffers.

        A step that needs more makes them grow, and with that `generation`.

        Args:
            device: of the queries.
            num_heads: query heads, a multiple of `num_kv_heads`.
            num_kv_heads: heads of the KV cache.
            head_dim: size of a head.
            max_rows: rows of a step that the buffers are made for.
            window: a row sees only the last `window` positions up to its own; None: all.
            dtype: of the queries.
            kv_dtype: of the KV cache; None: the queries'.
            max_items: items that the buffers are made for; None: a guess from `max_rows`.
            max_partials: likewise, partial results of rows.
            tuning: how the kernel is compiled and launched; None: what the tuning table says.

        Raises:
            ValueError: there is no kernel for such heads or types.
        """
        self.device = device
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.window = window
        self.dtype = dtype
        self.kv_dtype = dtype if kv_dtype is None else kv_dtype
        self.tuning = tuning or find_tuning(architecture(device), head_dim, dtype, self.kv_dtype)
        most_lines = self.tuning.kind_lines[0]
        if num_heads % num_kv_heads or num_heads > most_lines * num_kv_heads:
            raise ValueError(
                f"{num_heads} query heads over {num_kv_heads} KV heads: the attention kernel takes "
                f"1 to {most_lines} query heads for each KV head"
            )
        self.num_processors = num_processors(device)
        # Programs that the items are cut for: those of the launch that has the most.
        self.num_programs = self.num_processors * max(
            launch.programs_per_processor for launch in self.tuning.launches
        )
        ratio = num_heads // num_kv_heads
        self._tiling = Tiling(
            kind_rows=tuple(lines // ratio for lines in self.tuning.kind_lines),
            kind_key_cost=self.tuning.kind_key_cost,
            row_key_cost=0,
            even_tiles=False,
            min_part_keys=MIN_PART_KEYS,
            part_multiple=PART_MULTIPLE,
            items_per_worker=ITEMS_PER_WORKER,
        )
        if max_items is None:
            max_items = 2 * max_rows + ITEMS_PER_WORKER * self.num_programs
        if max_partials is None:
            max_partials = 2 * max_rows
        has_side = self.tuning.small is not None and device.type == "cuda"
        # Has no annotations in torch.
        self._side = torch.cuda.Stream(device) if has_side else None  # type: ignore[no-untyped-call]
        # Counts how often a buffer has moved: launches captured before that must not be replayed.
        self.generation = 0
        self._turn = 0
        self._allocate_lists(HEADER_SIZE + ITEM_SIZE * max_items + 3 * max_rows + 1 + max_partials)
        self._allocate_partials(max_partials)

    @property
    def window_positions(self) -> int:
        """Positions that a row sees, its own included."""
        return ALL_POSITIONS if self.window is None else min(self.window, ALL_POSITIONS)

    def load(self, work: SpanList | WorkList) -> None:
        """Make this the work of the next launches.

        The copy to the device is not waited for: it runs in order on the current stream.

        Args:
            work: the step's spans, or what `build_work_list` made of them for these tiles. Their
                page tables are not used: the kernel is given its own.
        """
        if isinstance(work, SpanList):
            num_workers = math.ceil(self.num_programs / self.num_kv_heads)
            work = build_work_list(work, self.window, num_workers, self._tiling)
        sections = [work.positions, work.merged_rows, work.merged_start, work.merged_partials]
        num_items, num_kinds = len(work.items), len(work.kind_ends)
        ends = HEADER_SIZE + ITEM_SIZE * num_items + np.cumsum([0, *map(len, sections)])
        size = int(ends[-1])
        if size > len(self.lists):
            self._allocate_lists(_grown(size))
            self.generation += 1
        if work.num_partials > len(self.partial_lse):
            self._allocate_partials(_grown(work.num_partials))
            self.generation += 1

        staging = self._staging[self._turn]
        target = staging.take()
        target[:HEADER_SIZE] = 0
        target[:2] = self.num_heads // self.num_kv_heads, len(work.merged_rows)
        target[2:6] = ends[:-1]
        target[6 : 6 + num_kinds] = work.kind_ends
        items = target[HEADER_SIZE : ends[0]].reshape(num_items, ITEM_SIZE)
        items[:, :7] = work.items
        for section, start, end in zip(sections, ends[:-1], ends[1:], strict=True):
            target[start:end] = section
        staging.send(self.lists, size)
        self._turn = 1 - self._turn

    def launch_all(self, launch: Callable[[Launch], None]) -> None:
        """Call `launch` for each of the tuning's launches, which then run beside each other.

        What follows waits for all of them, also in a graph that is being captured. On a device
        without streams they run one after the other.
        """
        first, *others = self.tuning.launches
        if self._side is None:
            for each in self.tuning.launches:
                launch(each)
            return
        main = torch.cuda.current_stream(self.device)
        self._side.wait_stream(main)
        launch(first)
        with torch.cuda.stream(self._side):
            for each in others:
                launch(each)
        main.wait_stream(self._side)

    def check(self, query: Tensor, key_cache: Tensor) -> None:
        """See that the tensors are of the kind that the work was made for.

        Raises:
            ValueError: they are not.
        """
        given = (*query.shape[1:], key_cache.shape[2], query.dtype, key_cache.dtype)
        made_for = (self.num_heads, self.head_dim, self.num_kv_heads, self.dtype, self.kv_dtype)
        if given != made_for:
            raise ValueError(
                "query heads, head size, KV heads, query type and cache type are "
                f"{_names(given)}, the work was made for {_names(made_for)}"
            )

    def _allocate_lists(self, size: int) -> None:
        self.lists = torch.zeros(size, dtype=torch.int32, device=self.device)
        self._staging = [_Staging(size, self.device) for _ in range(2)]

    def _allocate_partials(self, num_partials: int) -> None:
        shape = (num_partials, self.num_heads, self.head_dim)
        self.partial_out = torch.empty(shape, dtype=torch.float32, device=self.device)
        self.partial_lse = torch.empty(shape[:2], dtype=torch.float32, device=self.device)


class _Staging:
    """Host memory that the device copies from, while the host fills another one."""

    def __init__(self, size: int, device: torch.device) -> None:
        is_gpu = device.type != "cpu"
        self._memory = torch.empty(size, dtype=torch.int32, pin_memory=is_gpu)
        # Has no annotations in torch.
        self._sent = torch.cuda.Event() if is_gpu else None  # type: ignore[no-untyped-call]

    def take(self) -> NDArray[np.int32]:
        """The memory, once the device has copied what was in it."""
        if self._sent is not None:
            self._sent.synchronize()
        array: NDArray[np.int32] = self._memory.numpy()
        return array

    def send(self, target: Tensor, size: int) -> None:
        target[:size].copy_(self._memory[:size], non_blocking=True)
        if self._sent is not None:
            self._sent.record()


def _grown(size: int) -> int:
    """The next power of two: steps of like size do not grow the buffers again."""
    return 1 << (size - 1).bit_length()


def _names(values: tuple[object, ...]) -> str:
    return ", ".join(str(value).removeprefix("torch.") for value in values)
