"""Chooses the next token of each row from its logits, all rows at once.

The order of what is done to a row's logits is vLLM's: bias, a mask over the stop tokens while the
output is shorter than `min_tokens`, penalties, temperature, top-k, top-p.

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
from trunkline.engine.step_plan import TokenLogprobs

# Candidates that are sorted at first where top-p restricts a row; the whole vocabulary is sorted
# for the few rows whose probability is spread over more.
FIRST_CANDIDATES = 1024


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
    # The rows that are not greedy, and their settings.
    random_rows: Tensor  # [num_random] int64
    temperature: Tensor  # [num_random] float32
    top_k: Tensor  # [num_random] int64, 0: no restriction
    top_p: Tensor  # [num_random] float32
    uniform: Tensor  # [num_random] float32 in [0, 1)
    num_top_logprobs: tuple[int | None, ...]  # [num_rows] None: no log-probabilities


def sampling_batch(
    sequences: list[Sequence],
    positions: NDArray[np.int64],
    vocab_size: int,
    device: torch.device,
) -> SamplingBatch:
    """Collect the sampling parameters of the rows.

    Args:
        sequences: the sequence of each row.
        positions: [num_rows] position that each row's new token will have.
        vocab_size: ids from here on are ignored in biases and masks.
        device: where the tensors are put.
    """
    params = [sequence.sampling for sequence in sequences]
    random_rows = np.array([i for i, p in enumerate(params) if not p.is_greedy], dtype=np.int64)
    chosen = [params[i] for i in random_rows.tolist()]
    seeds = np.array([p.seed & 0xFFFFFFFFFFFFFFFF for p in chosen], dtype=np.uint64)

    def tensor(values: list[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return SamplingBatch(
        num_rows=len(params),
        edits=_logit_edits(sequences, positions, vocab_size, device),
        random_rows=torch.from_numpy(random_rows).to(device),
        temperature=tensor([p.temperature for p in chosen], torch.float32),
        top_k=tensor([p.top_k for p in chosen], torch.int64),
        top_p=tensor([p.top_p for p in chosen], torch.float32),
        uniform=torch.from_numpy(counter_uniform(seeds, positions[random_rows])).to(device),
        num_top_logprobs=tuple(p.num_top_logprobs for p in params),
    )


def sample(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """[num_rows] int64, the new token of each row.

    Args:
        logits: [num_rows, vocab_size], not changed.
        batch: how to sample them.
    """
    if batch.edits is not None:
        logits = _edited(logits, batch.edits)
    tokens = logits.argmax(-1)
    if len(batch.random_rows):
        chosen = logits.index_select(0, batch.random_rows).float()
        chosen = chosen.div_(batch.temperature.unsqueeze(1))
        tokens[batch.random_rows] = _draw(chosen, batch)
    return tokens


def token_logprobs(
    logits: Tensor, tokens: Tensor, batch: SamplingBatch
) -> tuple[TokenLogprobs | None, ...]:
    """Log-probabilities of the rows that ask for them, from the logits as the model gave them.

    Args:
        logits: [num_rows, vocab_size]
        tokens: [num_rows] the tokens that were sampled.
        batch: says which rows ask for how many.
    """
    wanted = [i for i, count in enumerate(batch.num_top_logprobs) if count is not None]
    results: list[TokenLogprobs | None] = [None] * batch.num_rows
    if not wanted:
        return tuple(results)
    rows = torch.tensor(wanted, device=logits.device)
    logprobs = logits.index_select(0, rows).float().log_softmax(-1)
    sampled = logprobs.gather(1, tokens[rows].unsqueeze(1)).squeeze(1).tolist()
    most = max(batch.num_top_logprobs[row] or 0 for row in wanted)
    top = logprobs.topk(min(most, logits.shape[1]), dim=-1)
    top_values, top_ids = top.values.tolist(), top.indices.tolist()
    for i, row in enumerate(wanted):
        count = batch.num_top_logprobs[row] or 0
        results[row] = TokenLogprobs(
            sampled=sampled[i],
            top_ids=tuple(top_ids[i][:count]),
            top_logprobs=tuple(top_values[i][:count]),
        )
    return tuple(results)


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


def _logit_edits(
    sequences: list[Sequence],
    positions: NDArray[np.int64],
    vocab_size: int,
    device: torch.device,
) -> LogitEdits | None:
    add: list[tuple[int, int, float]] = []
    repeat: list[tuple[int, int, float]] = []
    subtract: list[tuple[int, int, float]] = []
    for row, sequence in enumerate(sequences):
        params = sequence.sampling
        add += [(row, token, bias) for token, bias in params.logit_bias if token < vocab_size]
        if positions[row] - len(sequence.prompt) < params.min_tokens:
            add += [(row, t, -np.inf) for t in params.stop_token_ids if t < vocab_size]
        if not params.has_penalties:
            continue
        output = np.array(sequence.output, dtype=np.int64)
        if params.repetition_penalty != 1.0:
            seen = np.unique(np.concatenate([sequence.prompt.astype(np.int64), output]))
            repeat += [(row, token, params.repetition_penalty) for token in seen.tolist()]
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


def _draw(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """[num_random] tokens drawn from softmax(logits) under top-k and top-p."""
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    restricted = (batch.top_k > 0) | (batch.top_p < 1.0)
    free = (~restricted).nonzero().squeeze(1)
    if len(free):
        weights = logits.index_select(0, free).softmax(-1)
        tokens[free] = _invert(weights, batch.uniform[free])
    rows = restricted.nonzero().squeeze(1)
    if not len(rows):
        return tokens
    vocab_size = logits.shape[1]
    top_k = torch.where(batch.top_k > 0, batch.top_k, vocab_size).clamp_max(vocab_size)
    size = FIRST_CANDIDATES
    limited = top_k[rows][top_k[rows] < vocab_size]
    if len(limited):
        size = max(size, int(limited.max()))
    while len(rows):
        # A row is settled when its candidates reach its top-p, or its top-k.
        size = min(size, vocab_size)
        probabilities = logits.index_select(0, rows).softmax(-1)
        values, ids = probabilities.topk(size, dim=-1)
        allowed = torch.arange(size, device=rows.device) < top_k[rows].unsqueeze(1)
        values = values * allowed
        by_count = top_k[rows] <= size
        # Top-p is a share of what top-k left.
        total = torch.where(by_count, values.sum(-1), 1.0)
        target = (batch.top_p[rows] * total).unsqueeze(1)
        before = values.cumsum(-1) - values
        settled = by_count | (before[:, -1] + values[:, -1] >= target[:, 0]) | (size == vocab_size)
        keep = before < target
        keep[:, 0] = True
        drawn = _invert(values * keep, batch.uniform[rows])
        picked = ids.gather(1, drawn.unsqueeze(1)).squeeze(1)
        tokens[rows[settled]] = picked[settled]
        rows, size = rows[~settled], vocab_size
    return tokens


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The index where the running sum of each row's weights passes `uniform` times its total.

    Args:
        weights: [n, size] not negative, at least one positive in a row.
        uniform: [n] in [0, 1)

    Returns:
        [n] an index whose weight is positive.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    target = uniform.double().unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)
