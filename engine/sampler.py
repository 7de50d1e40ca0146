"""Chooses the next token of each row from its logits, all rows at once.

The order of what is done to a row's logits is vLLM's but for the mask: bias, no stop tokens while
the output is shorter than `min_tokens`, penalties, the mask of its grammar, temperature, top-k,
top-p.

Randomness is counter-based: the one uniform number that a sample takes is a hash of (seed of the
sequence, position of the new token). A sequence's samples therefore depend neither on its
neighbours in the batch nor on how often it was preempted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trunkline.engine.sequence import Sequence
from trunkline.kernels.dispatch import apply_token_masks, sample_rows

NO_ROWS = np.empty(0, np.int64)
# Of a repetition penalty: whatever is beyond has no other effect, but may overflow.
MOST_REPETITION_PENALTY = 1e30


@dataclass(frozen=True)
class LogitEdits:
    """Changes to single logits, as flat lists of (row, token, amount)."""

    # Added: logit bias; -inf for stop tokens that must not come yet.
    add_at: tuple[Tensor, Tensor]  # rows [n], tokens [n]
    add: Tensor  # [n] float32
    # Repetition penalty: positive logits are divided by it, negative ones multiplied.
    repeat_at: tuple[Tensor, Tensor]
    repeat: Tensor  # [n] float32
    # Presence and frequency penalty: subtracted.
    subtract_at: tuple[Tensor, Tensor]
    subtract: Tensor  # [n] float32


@dataclass(frozen=True)
class SamplingBatch:
    """How each row of one step is sampled."""

    num_rows: int
    edits: LogitEdits | None  # None: no row has any
    temperature: Tensor  # [num_rows] float32, 0: greedy
    top_k: Tensor  # [num_rows] int32, 0: no restriction
    top_p: Tensor  # [num_rows] float32
    uniform: Tensor  # [num_rows] float32 in [0, 1)
    mask_of_row: Tensor | None  # [num_rows] int64, -1: any token; None: no row has a mask
    num_top_logprobs: tuple[int | None, ...]  # [num_rows] None: no log-probabilities


def sampling_batch(
    sequences: list[Sequence],
    positions: NDArray[np.int64],
    vocab_size: int,
    device: torch.device,
    masked_rows: NDArray[np.int64] = NO_ROWS,
) -> SamplingBatch:
    """Collect the sampling parameters of the rows.

    Args:
        sequences: the sequence of each row.
        positions: [num_rows] position that each row's new token will have.
        vocab_size: ids from here on are ignored in biases and masks.
        device: where the tensors are put.
        masked_rows: [num_masks] the row that each mask is for. Its mask is what holds the stop
            tokens back.
    """
    params = [sequence.sampling for sequence in sequences]
    # One array, so that the device gets it in one piece.
    settings = np.zeros((4, len(params)), dtype=np.int32)
    temperature, top_p, uniform = (settings[i].view(np.float32) for i in (0, 2, 3))
    temperature[:] = [p.temperature for p in params]
    random_rows = temperature.nonzero()[0]
    if len(random_rows):
        chosen = [params[row] for row in random_rows.tolist()]
        seeds = np.array([p.seed & 0xFFFFFFFFFFFFFFFF for p in chosen], dtype=np.uint64)
        settings[1, random_rows] = [min(p.top_k, vocab_size) for p in chosen]
        top_p[random_rows] = [p.top_p for p in chosen]
        uniform[random_rows] = counter_uniform(seeds, positions[random_rows])
    on_device = torch.from_numpy(settings).to(device)
    return SamplingBatch(
        num_rows=len(params),
        edits=_logit_edits(sequences, positions, vocab_size, device, masked_rows),
        temperature=on_device[0].view(torch.float32),
        top_k=on_device[1],
        top_p=on_device[2].view(torch.float32),
        uniform=on_device[3].view(torch.float32),
        mask_of_row=_mask_of_row(masked_rows, len(params), device),
        num_top_logprobs=tuple([p.num_top_logprobs for p in params]),
    )


def sample(logits: Tensor, batch: SamplingBatch, masks: Tensor | None = None) -> Tensor:
    """[num_rows] int64, the new token of each row.

    Args:
        logits: [num_rows, vocab_size], not changed.
        batch: how to sample them.
        masks: [num_masks, num_words] int32, see `reference.apply_token_masks`; None: no row has
            any.
    """
    if batch.edits is not None:
        logits = _edited(logits, batch.edits)
    if masks is not None:
        assert batch.mask_of_row is not None
        logits = apply_token_masks(logits.contiguous(), masks, batch.mask_of_row)
    tokens = sample_rows(logits, batch.temperature, batch.top_k, batch.top_p, batch.uniform)
    # Of a row without a finite logit comes what is no token; the next step would fail on it.
    return tokens.clamp_(0, logits.shape[1] - 1)


def counter_uniform(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """[n] numbers in [0, 1), each a hash of its seed and position (SplitMix64's finaliser).

    24 bits, so that float32 holds every one of them exactly and none becomes 1.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    mixed = _mix64(seeds + golden)
    mixed = _mix64(mixed + golden * (positions.astype(np.uint64) + np.uint64(1)))
    return ((mixed >> np.uint64(40)).astype(np.float64) * 2.0**-24).astype(np.float32)


def _mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mask_of_row(
    masked_rows: NDArray[np.int64], num_rows: int, device: torch.device
) -> Tensor | None:
    if not len(masked_rows):
        return None
    mask_of_row = np.full(num_rows, -1, np.int64)
    mask_of_row[masked_rows] = np.arange(len(masked_rows))
    return torch.from_numpy(mask_of_row).to(device)


def _logit_edits(
    sequences: list[Sequence],
    positions: NDArray[np.int64],
    vocab_size: int,
    device: torch.device,
    masked_rows: NDArray[np.int64],
) -> LogitEdits | None:
    add: list[tuple[int, int, float]] = []
    repeat: list[tuple[int, int, float]] = []
    subtract: list[tuple[int, int, float]] = []
    is_masked = set(masked_rows.tolist())
    for row, sequence in enumerate(sequences):
        params = sequence.sampling
        if not (params.logit_bias or params.min_tokens or params.has_penalties):
            continue
        add += [(row, token, bias) for token, bias in params.logit_bias if token < vocab_size]
        num_sampled = positions[row] - len(sequence.prompt)
        if num_sampled < params.min_tokens and row not in is_masked:
            add += [(row, t, -np.inf) for t in params.stop_token_ids if t < vocab_size]
        if not params.has_penalties:
            continue
        output = np.array(sequence.output, dtype=np.int64)
        if params.repetition_penalty != 1.0:
            seen = np.unique(np.concatenate([sequence.prompt.astype(np.int64), output]))
            penalty = min(params.repetition_penalty, MOST_REPETITION_PENALTY)
            penalty = max(penalty, 1 / MOST_REPETITION_PENALTY)
            repeat += [(row, token, penalty) for token in seen.tolist()]
        tokens, counts = np.unique(output, return_counts=True)
        for token, count in zip(tokens.tolist(), counts.tolist(), strict=True):
            amount = params.presence_penalty + params.frequency_penalty * count
            if amount:
                subtract.append((row, token, amount))
    if not (add or repeat or subtract):
        return None

    def split(edits: list[tuple[int, int, float]]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        rows, tokens, amounts = zip(*edits, strict=True) if edits else ((), (), ())
        at = (
            torch.tensor(rows, dtype=torch.int64, device=device),
            torch.tensor(tokens, dtype=torch.int64, device=device),
        )
        return at, torch.tensor(amounts, dtype=torch.float32, device=device)

    return LogitEdits(*split(add), *split(repeat), *split(subtract))


def _edited(logits: Tensor, edits: LogitEdits) -> Tensor:
    logits = logits.to(torch.float32, copy=True)
    logits.index_put_(edits.add_at, edits.add, accumulate=True)
    seen = logits[edits.repeat_at]
    penalised = torch.where(seen > 0, seen / edits.repeat, seen * edits.repeat)
    logits.index_put_(edits.repeat_at, penalised)
    logits.index_put_(edits.subtract_at, -edits.subtract, accumulate=True)
    return logits
