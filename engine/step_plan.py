"""What passes between scheduler and runner: one immutable plan down, one immutable result up.

A step computes *entries*. An entry is a run of consecutive tokens of one sequence: a chunk of its
prompt, or one decode token. Entries are in attention order: depth-first over the prefix tree, so
that all entries below a node are neighbours and a shared prefix is read once for one contiguous
range of rows. Chunks of so many rows that they gain nothing by that come last, each for itself.

    rows (query tokens)   0 ....... 5 6 7 8 ......... 14
    entries               [ chunk   ][d][d][ chunk       ]     d = decode, one token
    spans                 [ prefix of node A ]                 not causal: all rows see all keys
                          [ own     ][o][o][ own          ]     causal: up to the row's position

Every row's spans together cover exactly the positions 0..its own, each once; the attention of a
row is the merge of its spans' partial results by log-sum-exp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]
BoolArray = NDArray[np.bool_]

# In StepPlan.token_ids: "the token this entry's sequence sampled in the previous step". The device
# still has it when the host plans ahead, so the runner fills it in there.
PENDING_TOKEN = -1


@dataclass(frozen=True)
class AttentionSpans:
    """Which rows attend to which keys: the work list of one step's attention, for every layer.

    The rows ``[row_start, row_end)`` of a span attend to the key positions
    ``[kv_start, kv_end)``, which are found in the page table of entry ``entry``. In a causal span
    the rows are one entry's, and a row sees the keys up to its own position; in any other span
    every row sees every key. ``kv_start`` is a multiple of the page size.
    """

    row_start: Int32Array  # [num_spans] row
    row_end: Int32Array  # [num_spans] row, exclusive
    entry: Int32Array  # [num_spans] row of StepPlan.page_tables
    kv_start: Int32Array  # [num_spans] token position
    kv_end: Int32Array  # [num_spans] token position, exclusive
    causal: BoolArray  # [num_spans]

    @property
    def num_spans(self) -> int:
        return len(self.row_start)


@dataclass(frozen=True)
class RowReads:
    """What is read of rows of prompts, beside sampling: see `prompt_reading`.

    A read asks for the log-probability of one token after a row; a row may have several. A pool is
    a range of rows whose hidden states are summed.
    """

    row: NDArray[np.int64]  # [num_reads] row of the step
    target: NDArray[np.int64]  # [num_reads] token id
    num_top: int  # most likely tokens that the reads ask for at most
    pool_start: NDArray[np.int64]  # [num_pools] row
    pool_end: NDArray[np.int64]  # [num_pools] row, exclusive


@dataclass(frozen=True)
class ReadResult:
    """What a step's reads and pools came to."""

    logprobs: NDArray[np.float32]  # [num_reads]
    top_ids: NDArray[np.int32]  # [num_reads, num_top] most likely first
    top_logprobs: NDArray[np.float32]  # [num_reads, num_top]
    pooled: NDArray[np.float32]  # [num_pools, hidden]


@dataclass(frozen=True)
class StepPlan:
    """All that one step computes. Arrays are never written to after construction."""

    step: int
    # Entry e computes the positions [entry_start, entry_start + entry_length) of its sequence.
    entry_start: Int32Array  # [num_entries] token position
    entry_length: Int32Array  # [num_entries] tokens, at least 1
    entry_sequence: Int32Array  # [num_entries] slot of the sequence
    entry_samples: BoolArray  # [num_entries] the last token's logits give a new token
    token_ids: Int32Array  # [num_rows] token id, or PENDING_TOKEN
    positions: Int32Array  # [num_rows] token position
    page_tables: Int32Array  # [num_entries, max_pages] page of each page_size tokens, -1 unused
    write_slots: NDArray[np.int64]  # [num_rows] page * page_size + offset: where K and V go
    spans: AttentionSpans
    reads: RowReads | None = None

    @property
    def num_entries(self) -> int:
        return len(self.entry_start)

    @property
    def num_rows(self) -> int:
        """Query tokens in the step."""
        return len(self.token_ids)


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one sampled position, from the model's distribution before sampling."""

    sampled: float
    top_ids: tuple[int, ...]  # most likely first
    top_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class StepResult:
    """The tokens that one step sampled."""

    step: int
    sequence: Int32Array  # [num_sampled] slot, in the order of the plan's sampling entries
    token_ids: Int32Array  # [num_sampled]
    logprobs: tuple[TokenLogprobs | None, ...]  # [num_sampled] None where none were asked for
    reads: ReadResult | None = None  # of a plan that has reads
