"""In which order the sequences of a plan run.

Siblings stay together: the unit of every order but `arrival` is a subtree of the prefix tree, whose
sequences run depth-first, so that few shared prefixes are resident at a time. Between batches the
earliest deadline goes first; within a batch, units are ordered by what they ask of the device:

    ratio    the most decoding per prompt token first (BatchLLM, arXiv 2412.03594): long decodes
             then run under the prefill of what comes later
    planned  from both ends of that list at once (BlendServe, arXiv 2411.16102), so that decoding,
             which waits for memory, and prefill, which waits for arithmetic, keep the proportion
             that the whole set has; decoding a little ahead, because its end comes later
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.prefix_tree import NO_NODE, PrefixTree

Int64Array = NDArray[np.int64]

# How far decoding runs ahead of prefill in the blend, as a share of all decoding.
DECODE_LEAD = 0.1


class Order(StrEnum):
    """The order of sequences."""

    PLANNED = "planned"
    RATIO = "ratio"
    DFS = "dfs"  # depth-first over the prefix tree, and nothing more
    ARRIVAL = "arrival"  # as given


def order_sequences(
    tree: PrefixTree,
    outputs: Int64Array,
    deadlines: NDArray[np.float64],
    priorities: Int64Array,
    order: Order,
    max_unit_tokens: int,
) -> Int64Array:
    """The sequences' indices, first to run first.

    Args:
        tree: of the sequences' prompts.
        outputs: [num_sequences] tokens that each is expected to generate.
        deadlines: [num_sequences] when each has to be through; equal ones are one batch.
        priorities: [num_sequences] higher ones go first, whatever their deadline.
        max_unit_tokens: a subtree with more tokens to compute and generate is taken apart into
            its children's. It would fill the cache by itself, and nothing could run beside it.
    """
    if order is Order.ARRIVAL:
        ranked = np.arange(len(outputs), dtype=np.int64)
    elif order is Order.DFS:
        ranked = tree.order
    else:
        ranked = _by_units(tree, outputs, max_unit_tokens, blend=order is Order.PLANNED)
    # Stable: within a deadline the order stays as it is.
    return ranked[np.lexsort((deadlines[ranked], -priorities[ranked]))]


def _by_units(
    tree: PrefixTree, outputs: Int64Array, max_unit_tokens: int, *, blend: bool
) -> Int64Array:
    if not len(outputs):
        return tree.order
    prefill, decode = _running_sums(tree, outputs)
    first = _unit_starts(tree, prefill + decode, max_unit_tokens)
    last = np.append(first[1:], len(outputs))
    unit_prefill = prefill[last] - prefill[first]
    unit_decode = decode[last] - decode[first]
    by_ratio = np.argsort(-unit_decode / np.maximum(unit_prefill, 1), kind="stable")
    picked = _blend(by_ratio, unit_prefill, unit_decode) if blend else by_ratio
    sizes = (last - first)[picked]
    starts = np.repeat(first[picked] - (np.cumsum(sizes) - sizes), sizes)
    return tree.order[starts + np.arange(len(outputs))]


def _running_sums(tree: PrefixTree, outputs: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Prompt tokens to compute, and tokens to generate, before each place of `tree.order`.

    A node's tokens count for the first sequence below it.

    Returns:
        Two arrays [num_sequences + 1].
    """
    prefill = np.zeros(len(outputs) + 1, np.int64)
    prefill[1:] = (tree.lengths - tree.shared_lengths)[tree.order]
    np.add.at(prefill, tree.first + 1, tree.end - tree.start)
    decode = np.zeros(len(outputs) + 1, np.int64)
    decode[1:] = outputs[tree.order]
    return np.cumsum(prefill), np.cumsum(decode)


def _unit_starts(tree: PrefixTree, tokens: Int64Array, max_unit_tokens: int) -> Int64Array:
    """Where the units begin in `tree.order`, ascending.

    Units are the largest subtrees with at most `max_unit_tokens`, and the sequences that are in
    none of them.

    Args:
        tokens: before each place of `tree.order`, [num_sequences + 1].
    """
    is_start = np.ones(len(tokens) - 1, np.bool_)
    is_small = tokens[tree.last] - tokens[tree.first] <= max_unit_tokens
    covered = np.zeros(tree.num_nodes, np.bool_)
    for v, up in enumerate(tree.parent.tolist()):
        is_below_unit = up != NO_NODE and covered[up]
        covered[v] = is_small[v] or is_below_unit
        if is_small[v] and not is_below_unit:
            is_start[tree.first[v] + 1 : tree.last[v]] = False
    return np.flatnonzero(is_start)


def _blend(by_ratio: Int64Array, prefill: Int64Array, decode: Int64Array) -> Int64Array:
    """Pick units from both ends of `by_ratio` so that decoding stays a little ahead of prefill."""
    total_prefill, total_decode = max(int(prefill.sum()), 1), max(int(decode.sum()), 1)
    share_of_prefill = (prefill / total_prefill).tolist()
    share_of_decode = (decode / total_decode).tolist()
    units = by_ratio.tolist()
    picked = []
    front, back = 0, len(units) - 1
    lead = 0.0  # decoding minus prefill among the picked, in shares of the whole
    while front <= back:
        if lead < DECODE_LEAD:
            unit, front = units[front], front + 1
        else:
            unit, back = units[back], back - 1
        lead += share_of_decode[unit] - share_of_prefill[unit]
        picked.append(unit)
    return np.array(picked, np.int64)
