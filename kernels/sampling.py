"""Sampling in torch, on any device: as few passes over the vocabulary as each row needs."""

from __future__ import annotations

import torch
from torch import Tensor

from trunkline.kernels import sampling_native
from trunkline.kernels.native import native_for
from trunkline.kernels.reference import LEAST_TEMPERATURE, MASS_OF_LARGEST

# Candidates that are sorted at first where a row is restricted. Rows whose probability is spread
# over more get GROWTH times as many, and so on up to the whole vocabulary.
FIRST_CANDIDATES = 128
GROWTH = 4
# Logits whose masses are computed at once, so that the steps to them stay in the CPU's cache.
CHUNK_LOGITS = 2**18
# Rows whose masks exist spread out, four bytes for each bit, at once.
MASK_CHUNK_ROWS = 64


def apply_token_masks(logits: Tensor, masks: Tensor, mask_of_row: Tensor) -> Tensor:
    """See `reference.apply_token_masks`."""
    masked = logits.clone()
    vocab_size = logits.shape[1]
    bit = torch.arange(32, dtype=torch.int32, device=logits.device)
    for rows in torch.split((mask_of_row >= 0).nonzero().squeeze(1), MASK_CHUNK_ROWS):
        words = masks.index_select(0, mask_of_row[rows]).unsqueeze(-1)
        is_forbidden = ((words >> bit) & 1 == 0).flatten(1)[:, :vocab_size]
        masked[rows] = masked[rows].masked_fill_(is_forbidden, -torch.inf)
    return masked


def sample_rows(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor
) -> Tensor:
    """See `reference.sample_rows`."""
    is_greedy = temperature == 0
    if is_greedy.all():
        return _largest(logits)
    vocab_size = logits.shape[1]
    top_k = torch.where((top_k > 0) & (top_k < vocab_size), top_k.long(), vocab_size)
    inverse = 1.0 / temperature.clamp_min(LEAST_TEMPERATURE)
    is_free = ~is_greedy & (top_k == vocab_size) & (top_p >= 1)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)

    greedy = is_greedy.nonzero().squeeze(1)
    if len(greedy):
        tokens[greedy] = _largest(logits.index_select(0, greedy))
    chunk_rows = max(CHUNK_LOGITS // vocab_size, 1)
    for rows in torch.split(is_free.nonzero().squeeze(1), chunk_rows):
        mass = _mass(logits.index_select(0, rows).float(), inverse[rows])
        tokens[rows] = _invert(mass, uniform[rows])
    restricted = ~(is_greedy | is_free)
    if restricted.any():
        tokens[restricted] = _draw_restricted(
            logits[restricted],
            inverse[restricted],
            top_k[restricted],
            top_p[restricted],
            uniform[restricted],
        )
    return tokens


def _largest(logits: Tensor) -> Tensor:
    """[n] index of the largest, the first among equals."""
    native = native_for(logits)
    if native is not None:
        return sampling_native.largest(native, logits.contiguous())
    return logits.float().argmax(-1)  # several times as fast as that of bfloat16 on a CPU


def _mass(logits: Tensor, inverse: Tensor) -> Tensor:
    """[n, size] float32, whose integral parts are the masses.

    Args:
        logits: [n, size] float32, the row's largest among them; overwritten.
        inverse: [n] of the temperature.
    """
    logits -= logits.amax(-1, keepdim=True)
    logits *= inverse.unsqueeze(1)
    return logits.exp_().mul_(MASS_OF_LARGEST)


def _invert(mass: Tensor, uniform: Tensor) -> Tensor:
    """[n] the index at which the running sum of [n, size] masses passes the share `uniform`."""
    cumulative = mass.cumsum(-1, dtype=torch.int64)
    target = (uniform.double() * cumulative[:, -1].double()).long().unsqueeze(1)
    found = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return found.clamp_max_(mass.shape[1] - 1)  # of masses that are no numbers


def _draw_restricted(
    logits: Tensor, inverse: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor
) -> Tensor:
    """[n] tokens of rows with top-p, or with a `top_k` below the vocabulary's size."""
    num_rows, vocab_size = logits.shape
    logits = logits.float()
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    by_count = top_k < vocab_size
    row_mass = _row_mass(logits, inverse, ~by_count)
    size = max(FIRST_CANDIDATES, int(top_k[by_count].amax()) + 1 if by_count.any() else 0)
    rows = torch.arange(num_rows, device=logits.device)
    while len(rows):
        size = min(size, vocab_size)
        values, ids = logits[rows].topk(size, dim=-1)
        mass = _mass(values.clone(), inverse[rows]).long()
        # Where top-k does not restrict, all candidates are above the last of them.
        mass *= values >= values.gather(1, top_k[rows].clamp_max(size).unsqueeze(1) - 1)
        total = torch.where(by_count[rows], mass.sum(-1), row_mass[rows])
        is_kept = _is_kept(values, mass, top_p[rows].double() * total.double())
        # What is left out is at most as likely as the last candidate. It does not matter where that
        # one is not kept; under top-k, whose total is the candidates' own, where it has no mass.
        is_open = torch.where(by_count[rows], mass[:, -1] > 0, is_kept[:, -1])
        is_settled = ~is_open | (size == vocab_size)

        width = max(int(is_kept.sum(-1).amax()), 1)
        order = ids[:, :width].argsort(-1)
        kept_mass = (mass * is_kept)[:, :width].gather(1, order)
        drawn = order.gather(1, _invert(kept_mass, uniform[rows]).unsqueeze(1))
        picked = ids.gather(1, drawn).squeeze(1)
        tokens[rows[is_settled]] = picked[is_settled]
        rows, size = rows[~is_settled], size * GROWTH
    return tokens


def _is_kept(values: Tensor, mass: Tensor, limit: Tensor) -> Tensor:
    """[n, size] whether the strictly more likely tokens have less mass than the limit.

    Tokens without a mass count as not kept; they are never drawn.

    Args:
        values: [n, size] logits in falling order.
        mass: [n, size] int64
        limit: [n] float64
    """
    before = mass.cumsum(-1) - mass
    # Of equal logits, those before the first are the more likely ones.
    before[:, 1:] *= values[:, 1:] < values[:, :-1]
    more_likely = before.cummax(-1).values
    is_likely = more_likely.double() < limit.unsqueeze(1)
    return (is_likely & (mass > 0)) | (values == values[:, :1])


def _row_mass(logits: Tensor, inverse: Tensor, is_wanted: Tensor) -> Tensor:
    """[n] int64, the mass of each row's whole vocabulary where it is wanted, else 0."""
    total = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    chunk_rows = max(CHUNK_LOGITS // logits.shape[1], 1)
    for rows in torch.split(is_wanted.nonzero().squeeze(1), chunk_rows):
        mass = _mass(logits.index_select(0, rows), inverse[rows])
        total[rows] = mass.int().sum(-1)
    return total
