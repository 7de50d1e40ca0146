"""Turns a StepPlan into the tensors that the decoder and the sampler take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trunkline.engine.model.config import ModelConfig
from trunkline.engine.model.decoder import DecoderInputs
from trunkline.engine.sampler import NO_ROWS, SamplingBatch, sampling_batch
from trunkline.engine.sequence import Sequence
from trunkline.engine.step_plan import PENDING_TOKEN, StepPlan
from trunkline.kernels.dispatch import AttentionPlan
from trunkline.kernels.spans import SpanList


@dataclass(frozen=True)
class StepInputs:
    """One step, on the device."""

    decoder: DecoderInputs
    # [num_sampled] int64 among the hidden states; None: all of them are sampled, in their order.
    sampled_rows: Tensor | None
    sampling: SamplingBatch
    sample_slots: NDArray[np.int32]  # [num_sampled] slot of each row that is sampled


def build_inputs(
    plan: StepPlan,
    sequences: Mapping[int, Sequence],
    config: ModelConfig,
    page_size: int,
    last_tokens: Tensor,
    masked_rows: NDArray[np.int64] = NO_ROWS,
) -> StepInputs:
    """Build a step's tensors.

    Args:
        plan: the step.
        sequences: by slot; at least those that are sampled.
        config: the model's shape.
        page_size: tokens in a page of the KV cache.
        last_tokens: [num_slots] the token that each slot sampled last, on the decoder's device.
        masked_rows: [num_masks] those of the sampled rows that have a mask.
    """
    device = last_tokens.device
    spans = span_list(plan, page_size)
    last_rows = np.cumsum(plan.entry_length, dtype=np.int64) - 1
    sampled = np.flatnonzero(plan.entry_samples)
    slots = plan.entry_sequence[sampled]
    new_positions = (plan.entry_start + plan.entry_length)[sampled].astype(np.int64)

    is_every_row = len(sampled) == plan.num_rows
    sampled_rows = _to(last_rows[sampled], device)

    decoder = DecoderInputs(
        token_ids=_token_ids(plan, last_tokens),
        positions=_to(plan.positions, device),
        write_slots=_to(plan.write_slots, device),
        attention={window: AttentionPlan(spans, device, window) for window in set(config.windows)},
        # Rows that are sampled are in order, so all of them are the rows as they are. A step that
        # reads prompts reads most of its rows.
        wanted_rows=None if is_every_row or plan.reads is not None else sampled_rows,
    )
    return StepInputs(
        decoder=decoder,
        sampled_rows=None if is_every_row or plan.reads is None else sampled_rows,
        sampling=sampling_batch(
            [sequences[slot] for slot in slots.tolist()],
            new_positions,
            config.vocab_size,
            device,
            masked_rows,
        ),
        sample_slots=slots,
    )


def _token_ids(plan: StepPlan, last_tokens: Tensor) -> Tensor:
    token_ids = _to(plan.token_ids, last_tokens.device)
    pending = np.flatnonzero(plan.token_ids == PENDING_TOKEN)
    if len(pending):
        entry_of_row = np.repeat(np.arange(plan.num_entries), plan.entry_length)
        slots = plan.entry_sequence[entry_of_row[pending]]
        known = last_tokens[_to(slots, last_tokens.device)]
        token_ids[_to(pending, last_tokens.device)] = known
    return token_ids


def span_list(plan: StepPlan, page_size: int) -> SpanList:
    """The plan's spans, as the kernels take them."""
    spans = plan.spans
    return SpanList(
        row_start=spans.row_start.astype(np.int64),
        row_end=spans.row_end.astype(np.int64),
        entry=spans.entry.astype(np.int64),
        kv_start=spans.kv_start.astype(np.int64),
        kv_end=spans.kv_end.astype(np.int64),
        causal=spans.causal,
        positions=plan.positions.astype(np.int64),
        page_tables=plan.page_tables.astype(np.int64),
        page_size=page_size,
    )


def _to(array: NDArray[np.integer], device: torch.device) -> Tensor:
    """A copy of `array` as int64 on `device`."""
    return torch.from_numpy(array.astype(np.int64)).to(device)
