"""The specification of every kernel, in plain torch.

Written for clarity, not speed: tests compare each fast variant with these. No function changes its
inputs, except `write_kv`, whose purpose that is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trunkline.kernels.spans import SpanList

# Mass of a row's most likely token when a token is drawn.
MASS_OF_LARGEST = 2**30
# Lower temperatures than this, but for 0, count as this; its inverse is a normal number.
LEAST_TEMPERATURE = 1e-20
# What float8 e4m3 holds at most.
FP8_MAX = 448.0


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation over the last dimension, computed in float32.

    Args:
        x: [..., size]
        weight: [size]
        eps: added to the mean square.
    """
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return scaled.to(x.dtype) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add `x` to the residual stream and normalise the sum.

    Returns:
        (normalised sum, sum), both [..., size]; the sum is the new residual stream.
    """
    total = x + residual
    return rms_norm(total, weight, eps), total


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding; the two halves of a head are the rotated pairs.

    Args:
        x: [num_rows, num_heads, head_dim]
        cos: [num_rows, head_dim / 2] of each row's position, in x's dtype.
        sin: like `cos`.
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up.

    Args:
        gate_up: [num_rows, 2 * size], the gate first.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def write_kv(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> None:
    """Store each row's key and value in its cache slot.

    Args:
        key: [num_rows, num_kv_heads, head_dim]
        value: like `key`.
        key_cache: [num_pages, page_size, num_kv_heads, head_dim] in the key's dtype or
            float8_e4m3fn, written to.
        value_cache: like `key_cache`.
        slots: [num_rows] page * page_size + offset; -1: the row is padding and is not stored.
        key_scale: what a stored float8 key is multiplied by to give the key.
        value_scale: the same for the value.
    """
    page_size = key_cache.shape[1]
    is_stored = slots >= 0
    slots = slots[is_stored]
    for cache, rows, scale in ((key_cache, key, key_scale), (value_cache, value, value_scale)):
        stored = rows[is_stored]
        if cache.dtype == torch.float8_e4m3fn:
            stored = (stored.float() * (1.0 / scale)).clamp(-FP8_MAX, FP8_MAX)
        cache[slots // page_size, slots % page_size] = stored.to(cache.dtype)


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    spans: SpanList,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Attention of each row over its spans, computed span by span and merged, in float32.

    Args:
        query: [num_rows, num_heads, head_dim]
        key_cache: [num_pages, page_size, num_kv_heads, head_dim]
        value_cache: like `key_cache`.
        spans: which rows attend to which keys.
        scale: multiplies the scores.
        window: a row sees only the last `window` positions up to its own; None: all.
        soft_cap: scores s become soft_cap * tanh(s / soft_cap); None: they stay.

    Returns:
        [num_rows, num_heads, head_dim] in the query's dtype.
    """
    num_rows, num_heads, head_dim = query.shape
    _, page_size, num_kv_heads, _ = key_cache.shape
    merged = torch.zeros(num_rows, num_heads, head_dim, device=query.device)
    merged_lse = torch.full((num_rows, num_heads), -torch.inf, device=query.device)
    for i in range(spans.num_spans):
        rows = slice(int(spans.row_start[i]), int(spans.row_end[i]))
        key_positions = torch.arange(int(spans.kv_start[i]), int(spans.kv_end[i]))
        pages = torch.as_tensor(spans.page_tables[spans.entry[i]])[key_positions // page_size]
        index = pages.long().to(query.device), (key_positions % page_size).to(query.device)
        ratio = num_heads // num_kv_heads
        key = key_cache[index].float().repeat_interleave(ratio, dim=1)
        value = value_cache[index].float().repeat_interleave(ratio, dim=1)

        row_positions = torch.as_tensor(spans.positions[rows]).long().unsqueeze(1)
        visible = torch.ones(len(row_positions), len(key_positions), dtype=torch.bool)
        if spans.causal[i]:
            visible &= key_positions <= row_positions
        if window is not None:
            visible &= key_positions > row_positions - window
        scores = torch.einsum("rhd,khd->rhk", query[rows].float(), key) * scale
        if soft_cap is not None:
            scores = soft_cap * (scores / soft_cap).tanh()
        scores.masked_fill_(~visible.to(query.device).unsqueeze(1), -torch.inf)
        lse = scores.logsumexp(-1)
        probabilities = (scores - lse.unsqueeze(-1)).exp().nan_to_num(nan=0.0)
        out = torch.einsum("rhk,khd->rhd", probabilities, value)
        merged[rows], merged_lse[rows] = merge_partials(merged[rows], merged_lse[rows], out, lse)
    return merged.to(query.dtype)


def merge_partials(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention over two disjoint sets of keys from the attention over each.

    Args:
        out_a: [..., head_dim] softmax-weighted mean of the values of the first set.
        lse_a: [...] log of the sum of the exponentials of its scores; -inf for an empty set.
        out_b: like `out_a`, of the second set.
        lse_b: like `lse_a`.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    weight_a = (lse_a - lse).exp().nan_to_num(nan=0.0).unsqueeze(-1)
    weight_b = (lse_b - lse).exp().nan_to_num(nan=0.0).unsqueeze(-1)
    return out_a * weight_a + out_b * weight_b, lse


def apply_token_masks(logits: Tensor, masks: Tensor, mask_of_row: Tensor) -> Tensor:
    """The logits, with -inf in place of those of the tokens that a row must not have.

    Args:
        logits: [num_rows, vocab_size]
        masks: [num_masks, num_words] int32, at least vocab_size bits: bit i of word w, from the
            lowest, is set if the token 32 * w + i is allowed.
        mask_of_row: [num_rows] int64 row of `masks`; -1: the row may have any token.

    Returns:
        [num_rows, vocab_size] in the logits' dtype.
    """
    masked = logits.clone()
    tokens = torch.arange(logits.shape[1], device=logits.device)
    for row, mask in enumerate(mask_of_row.tolist()):
        if mask >= 0:
            is_allowed = (masks[mask][tokens // 32] >> (tokens % 32)) & 1
            masked[row, is_allowed == 0] = -torch.inf
    return masked


def sample_rows(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor
) -> Tensor:
    """The token of each row, by its logits and the number that was drawn for it.

    A token's probability is softmax(logits / temperature). Top-k leaves the tokens whose logit is
    at least the k-th largest. Of these, top-p leaves the tokens for which all that are strictly
    more likely have less than the share `top_p` of the probability. Equal tokens stay or go
    together, and the most likely ones always stay. Of what is left, in the order of the vocabulary,
    the token is taken at which the running sum of the probabilities passes the share `uniform`.

    Probabilities are handled as integers, a token's *mass*: 2^30 for the most likely token, the
    others in proportion and rounded down. Sums of masses are exact in any order, so that the token
    depends neither on how a row is cut up nor on the device, but for the last bits of its `exp`.

    Args:
        logits: [num_rows, vocab_size], in each row at least one finite, the others not above it.
        temperature: [num_rows] float32; 0: the largest logit, the first among equals.
        top_k: [num_rows] int32; 0 or beyond the vocabulary: no restriction.
        top_p: [num_rows] float32 in [0, 1]; 1: no restriction.
        uniform: [num_rows] float32 in [0, 1), multiples of 2^-24.

    Returns:
        [num_rows] int64
    """
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for row, scores in enumerate(logits.float()):
        if temperature[row] == 0:
            tokens[row] = scores.argmax()
            continue
        inverse = 1.0 / temperature[row].clamp_min(LEAST_TEMPERATURE)
        mass = (((scores - scores.max()) * inverse).exp() * MASS_OF_LARGEST).long()
        if 0 < top_k[row] < len(scores):
            mass[scores < scores.topk(int(top_k[row])).values[-1]] = 0
        distinct, group = scores.unique(return_inverse=True)
        group_mass = torch.zeros(len(distinct), dtype=torch.int64, device=logits.device)
        group_mass.index_add_(0, group, mass)
        more_likely = group_mass.sum() - group_mass.cumsum(0)
        is_kept = more_likely.double() < top_p[row].double() * mass.sum().double()
        is_kept[-1] = True
        mass[~is_kept[group]] = 0
        target = (uniform[row].double() * mass.sum().double()).long()
        tokens[row] = torch.searchsorted(mass.cumsum(0), target, right=True)
    return tokens
