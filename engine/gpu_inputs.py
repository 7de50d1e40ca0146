"""Turns a StepPlan into tensors in a GPU's memory, by one copy, at addresses that stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trunkline.engine.batch_inputs import span_list
from trunkline.engine.device_page_tables import DevicePageTables
from trunkline.engine.logprobs import WantedLogprobs
from trunkline.engine.model.config import ModelConfig
from trunkline.engine.sampler import NO_ROWS, LogitEdits, SamplingBatch, sampling_batch
from trunkline.engine.sequence import Sequence
from trunkline.engine.staging import Array, Staging
from trunkline.engine.step_plan import PENDING_TOKEN, StepPlan
from trunkline.kernels.spans import SpanList

CPU = torch.device("cpu")
# In write_slots: the row is padding, its K and V are not stored.
NO_SLOT = -1


@dataclass(frozen=True)
class GpuInputs:
    """One step, on the device. The first three are [num_padded_rows]."""

    token_ids: Tensor  # int64
    positions: Tensor  # int64
    write_slots: Tensor  # int64
    sampled_rows: Tensor  # [num_sampled] int64
    sampled_slots: Tensor  # [num_sampled] int64
    sampling: SamplingBatch
    logprobs: WantedLogprobs | None
    logprob_rows: Tensor  # [num_wanted] int64


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
    ) -> GpuInputs:
        """Send a step's tensors to the device. They are valid until the next call.

        Args:
            plan: the step.
            sequences: by slot; at least those that are sampled.
            last_tokens: [num_slots] the token that each slot sampled last, on the device.
            num_padded_rows: at least the plan's rows; the rest is padding.
            masked_rows: [num_masks] those of the sampled rows that have a mask.
        """
        sampled = np.flatnonzero(plan.entry_samples)
        slots = plan.entry_sequence[sampled]
        last_rows = np.cumsum(plan.entry_length, dtype=np.int64)[sampled] - 1
        new_positions = (plan.entry_start + plan.entry_length)[sampled].astype(np.int64)
        sampling = sampling_batch(
            [sequences[slot] for slot in slots.tolist()],
            new_positions,
            self._config.vocab_size,
            CPU,
            masked_rows,
        )
        logprobs = WantedLogprobs.of(sampling.num_top_logprobs)
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
            last_rows,
            slots.astype(np.int64),
            np.empty(0, np.int64) if logprobs is None else logprobs.rows,
            *[tensor.numpy() for tensor in _tensors(sampling)],
        ]
        sent = self._staging.send(arrays)
        token_ids, positions, write_slots, rows_to_fill, slots_to_read = sent[:5]
        if len(pending_rows):
            # Rows without a token have index -1, which no table has: they are filled first.
            token_ids.index_copy_(0, rows_to_fill, last_tokens.index_select(0, slots_to_read))
        self._tables.apply(*sent[5:7])
        return GpuInputs(
            token_ids=token_ids,
            positions=positions,
            write_slots=write_slots,
            sampled_rows=sent[7],
            sampled_slots=sent[8],
            sampling=_with_tensors(sampling, sent[10:]),
            logprobs=logprobs,
            logprob_rows=sent[9],
        )

    def spans(self, plan: StepPlan) -> SpanList:
        """The plan's spans, with slots in place of entries: rows of the tables on the device."""
        spans = span_list(plan, self._page_size)
        return dataclasses.replace(
            spans,
            entry=plan.entry_sequence[spans.entry].astype(np.int64),
            page_tables=np.empty((0, 0), np.int64),
        )


def _entry_of_row(plan: StepPlan, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.searchsorted(np.cumsum(plan.entry_length), rows, side="right")


def _padded(
    values: NDArray[np.int32] | NDArray[np.int64], size: int, padding: int
) -> NDArray[np.int64]:
    padded = np.full(size, padding, np.int64)
    padded[: len(values)] = values
    return padded


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
