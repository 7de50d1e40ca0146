"""How much KV memory the running sequences will need at their worst moment to come."""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


def peak_kv_tokens(current: Int64Array, remaining: Int64Array) -> int:
    """The predicted peak of the KV tokens that a set of sequences holds together.

    Every sequence grows by one token a step and gives all back when it finishes. With the
    sequences sorted by remaining tokens, descending, the memory is at a local peak just before
    the k-th of them finishes, when the k longest-lived are left and each has grown by
    ``remaining[k]``; the peak is the largest of these.

    Args:
        current: [n] KV tokens held now.
        remaining: [n] tokens still to come, at least 0.

    Returns:
        KV tokens; 0 for no sequences.
    """
    if not len(current):
        return 0
    by_remaining = np.argsort(-remaining, kind="stable")
    held = np.cumsum(current[by_remaining])
    alive = np.arange(1, len(current) + 1)
    return int((held + alive * remaining[by_remaining]).max())


def num_that_fit(
    current: Int64Array,
    remaining: Int64Array,
    num_running: int,
    resident: Int64Array,
    capacity_tokens: int,
) -> int:
    """How many candidates, from the first, can join the running sequences without overflow.

    Args:
        current, remaining: as for `peak_kv_tokens`, [num_running + num_candidates], running first.
        resident: KV tokens of shared prefixes when that many candidates and the one at this index
            have joined, [num_candidates], non-decreasing.
    """

    def overflows(count: int) -> bool:
        end = num_running + count
        peak = peak_kv_tokens(current[:end], remaining[:end]) + int(resident[count - 1])
        return peak > capacity_tokens

    # The peak grows with every sequence added, so the last count that fits can be bisected.
    return bisect.bisect_left(range(1, len(resident) + 1), True, key=overflows)
