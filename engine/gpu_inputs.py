"""Turns a StepPlan into tensors in a GPU's memory, by one copy, at addresses that stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trunkline.engine.batch_inputs import span_list
from trunkline.engine.device_page_tables import DevicePageTables
from trunkline.engine.hidden_reading import ReadInputs
from trunkline.engine.logprobs import WantedLogprobs
from trunkline.engine.model.config import ModelConfig
from trunkline.engine.sampler import NO_ROWS, LogitEdits, SamplingBatch, sampling_batch
from trunkline.engine.sequence import Sequence
from trunkline.engine.staging import Array, Staging
from trunkline.engine.step_plan import PENDING_TOKEN, RowReads, StepPlan
from trunkline.kernels.spans import SpanList

CPU = torch.device("cpu")
# In write_slots: the row is padding, its K and V are not stored.
NO_SLOT = -1
# Rows whose logits over the vocabulary exist at once. A step may sample many times as many.
SAMPLED_AT_ONCE = 2048


@dataclass(frozen=True)
class SampledPart:
    """Rows of a step that are sampled together, at most `SAMPLED_AT_ONCE`."""

    rows: Tensor  # [num_sampled] int64 row of the hidden states
    slots: Tensor  # [num_sampled] int64
    sampling: SamplingBatch
    masks: slice  # which of the step's masks are those of these rows
    logprobs: WantedLogprobs | None
    logprob_rows: Tensor  # [num_wanted] int64, among these rows


@dataclass(frozen=True)
class GpuInputs:
    """One step, on the device. The first three are [num_padded_rows]."""

    token_ids: Tensor  # int64
    positions: Tensor  # int64
    write_slots: Tensor  # int64
    # [num_wanted] int64, rows whose hidden states are computed to the end; None: all. Rows of
    # hidden states count these alone.
    wanted_rows: Tensor | None
    reads: ReadInputs | None
    sampled: tuple[SampledPart, ...]


class InputBuilder:
    """Owns the memory that the steps' inputs lie in, and the page tables."""

    def __init__(self, config: ModelConfig, page_size: int, tables: DevicePageTables) -> None:
        self._config = config
        self._page_size = page_size
        self._tables = tables
        self._staging = Staging(tables.tensor.device, num_bytes=2**20)

    @property
    def generation(self) -> int:
        """Counts how often something has moved that launches read."""
        return self._staging.generation + self._tables.generation

    def build(
        self,
        plan: StepPlan,
        sequences: Mapping[int, Sequence],
        last_tokens: Tensor,
        num_padded_rows: int,
        masked_rows: NDArray[np.int64] = NO_ROWS,
        *,
        every_row: bool,
    ) -> GpuInputs:
        """Send a step's tensors to the device. They are valid until the next call.

        Args:
            plan: the step.
            sequences: by slot; at least those that are sampled.
            last_tokens: [num_slots] the token that each slot sampled last, on the device.
            num_padded_rows: at least the plan's rows; the rest is padding.
            masked_rows: [num_masks] those of the sampled rows that have a mask, rising.
            every_row: the hidden states of all rows are computed, also of those that nobody wants.
        """
        sampled = np.flatnonzero(plan.entry_samples)
        last_rows = np.cumsum(plan.entry_length, dtype=np.int64)[sampled] - 1
        wanted, reads = None, plan.reads
        if not every_row:
            wanted, last_rows, reads = _only_wanted(plan, last_rows)
        parts = [
            self._part(plan, sequences, last_rows, sampled, masked_rows, start)
            for start in range(0, len(sampled), SAMPLED_AT_ONCE)
        ]
        pending_rows = np.flatnonzero(plan.token_ids == PENDING_TOKEN)
        pending_slots = plan.entry_sequence[_entry_of_row(plan, pending_rows)]
        # What a recorded graph reads comes first: its address depends on the padding alone.
        arrays: list[Array] = [
            _padded(plan.token_ids, num_padded_rows, 0),
            _padded(plan.positions, num_padded_rows, 0),
            _padded(plan.write_slots, num_padded_rows, NO_SLOT),
            pending_rows,
            pending_slots.astype(np.int64),
            *self._tables.changes(plan.entry_sequence, plan.page_tables),
            NO_ROWS if wanted is None else wanted,
            *((NO_ROWS, NO_ROWS) if reads is None else (reads.row, reads.target)),
        ]
        num_of_step = len(arrays)
        for part in parts:
            arrays += _arrays(part)
        sent = self._staging.send(arrays)
        token_ids, positions, write_slots, rows_to_fill, slots_to_read = sent[:5]
        wanted_rows, rows_read, targets = sent[7:num_of_step]
        if len(pending_rows):
            # Rows without a token have index -1, which no table has: they are filled first.
            token_ids.index_copy_(0, rows_to_fill, last_tokens.index_select(0, slots_to_read))
        self._tables.apply(*sent[5:7])
        of_parts = iter(sent[num_of_step:])
        return GpuInputs(
            token_ids=token_ids,
            positions=positions,
            write_slots=write_slots,
            wanted_rows=None if wanted is None else wanted_rows,
            reads=None if reads is None else ReadInputs(reads, rows_read, targets),
            sampled=tuple(
                _on_device(part, list(islice(of_parts, len(_arrays(part))))) for part in parts
            ),
        )

    def _part(
        self,
        plan: StepPlan,
        sequences: Mapping[int, Sequence],
        rows: NDArray[np.int64],
        sampled: NDArray[np.int64],
        masked_rows: NDArray[np.int64],
        start: int,
    ) -> SampledPart:
        """The part that begins at `start` among the step's sampled rows, in the host's memory.

        Args:
            rows: [num_sampled] row of the hidden states.
            sampled: [num_sampled] entry.
            masked_rows: see `build`.
        """
        entries = sampled[start : start + SAMPLED_AT_ONCE]
        slots = plan.entry_sequence[entries]
        first_mask, end_mask = np.searchsorted(masked_rows, (start, start + len(entries))).tolist()
        sampling = sampling_batch(
            [sequences[slot] for slot in slots.tolist()],
            (plan.entry_start + plan.entry_length)[entries].astype(np.int64),
            self._config.vocab_size,
            CPU,
            masked_rows[first_mask:end_mask] - start,
        )
        logprobs = WantedLogprobs.of(sampling.num_top_logprobs)
        return SampledPart(
            rows=torch.from_numpy(rows[start : start + len(entries)]),
            slots=torch.from_numpy(slots.astype(np.int64)),
            sampling=sampling,
            masks=slice(first_mask, end_mask),
            logprobs=logprobs,
            logprob_rows=torch.from_numpy(NO_ROWS if logprobs is None else logprobs.rows),
        )

    def spans(self, plan: StepPlan) -> SpanList:
        """The plan's spans, with slots in place of entries: rows of the tables on the device."""
        spans = span_list(plan, self._page_size)
        return dataclasses.replace(
            spans,
            entry=plan.entry_sequence[spans.entry].astype(np.int64),
            page_tables=np.empty((0, 0), np.int64),
        )


def _only_wanted(
    plan: StepPlan, sampled_rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64], RowReads | None]:
    """The rows that are sampled, read or pooled, and where they are among themselves.

    Returns:
        (wanted, sampled, reads): [num_wanted] rows of the step, rising, or None where they are all;
        `sampled_rows` and the rows of the plan's reads, counted among the wanted ones.
    """
    reads = plan.reads
    is_wanted = np.zeros(plan.num_rows, np.bool_)
    is_wanted[sampled_rows] = True
    if reads is not None:
        is_wanted[reads.row] = True
        for start, end in zip(reads.pool_start.tolist(), reads.pool_end.tolist(), strict=True):
            is_wanted[start:end] = True
    if is_wanted.all():
        return None, sampled_rows, reads
    # [num_rows + 1] wanted rows before each row; pools are ranges of wanted rows alone.
    before = np.concatenate([[0], np.cumsum(is_wanted)]).astype(np.int64)
    if reads is not None:
        reads = dataclasses.replace(
            reads,
            row=before[reads.row],
            pool_start=before[reads.pool_start],
            pool_end=before[reads.pool_end],
        )
    return np.flatnonzero(is_wanted), before[sampled_rows], reads


def _entry_of_row(plan: StepPlan, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.searchsorted(np.cumsum(plan.entry_length), rows, side="right")


def _padded(
    values: NDArray[np.int32] | NDArray[np.int64], size: int, padding: int
) -> NDArray[np.int64]:
    padded = np.full(size, padding, np.int64)
    padded[: len(values)] = values
    return padded


def _arrays(part: SampledPart) -> list[Array]:
    """The part's arrays, in the order that `_on_device` takes them."""
    tensors = [part.rows, part.slots, part.logprob_rows, *_tensors(part.sampling)]
    return [tensor.numpy() for tensor in tensors]


def _on_device(part: SampledPart, tensors: list[Tensor]) -> SampledPart:
    """`part` with `tensors` in place of its own."""
    return dataclasses.replace(
        part,
        rows=tensors[0],
        slots=tensors[1],
        logprob_rows=tensors[2],
        sampling=_with_tensors(part.sampling, tensors[3:]),
    )


def _tensors(batch: SamplingBatch) -> list[Tensor]:
    """The batch's tensors, in the order that `_with_tensors` takes them."""
    found = [batch.temperature, batch.top_k, batch.top_p, batch.uniform]
    if batch.mask_of_row is not None:
        found.append(batch.mask_of_row)
    if batch.edits is not None:
        edits = batch.edits
        found += [*edits.add_at, edits.add, *edits.repeat_at, edits.repeat]
        found += [*edits.subtract_at, edits.subtract]
    return found


def _with_tensors(batch: SamplingBatch, tensors: list[Tensor]) -> SamplingBatch:
    """`batch` with `tensors` in place of its own."""
    t = tensors[4:]
    mask_of_row = None
    if batch.mask_of_row is not None:
        mask_of_row, *t = t
    edits = None
    if batch.edits is not None:
        edits = LogitEdits((t[0], t[1]), t[2], (t[3], t[4]), t[5], (t[6], t[7]), t[8])
    return dataclasses.replace(
        batch,
        edits=edits,
        mask_of_row=mask_of_row,
        temperature=tensors[0],
        top_k=tensors[1],
        top_p=tensors[2],
        uniform=tensors[3],
    )
