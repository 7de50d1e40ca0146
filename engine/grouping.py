"""Which shared prefixes are worth a group.

Page tables share KV at every level of the prefix tree at no cost. Attention does not: to read a
prefix once for many rows, the rows have to be tiled together and their partial results merged.
`chain_groups` chooses for that. `exact_groups` is the best choice for a system that shares one
level only, and `greedy_groups` the one that BatchLLM's authors make, both for comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.prefix_tree import NO_NODE, PrefixTree

BoolArray = NDArray[np.bool_]
Int64Array = NDArray[np.int64]

# The kernel's price list, in keys that one row reads. Rows of one tile share a read; merging a
# partial result costs a row about as much as reading this many keys.
TILE_ROWS = 64
MERGE_COST_KEYS = 32


def exact_groups(tree: PrefixTree) -> BoolArray:
    """The set of nodes that saves the most prompt tokens with one level of sharing.

    A prompt attached to node s saves end(s) tokens, and s costs end(s) tokens once.

    Returns:
        Whether each node is chosen, [num_nodes].
    """

    def cost(v: int, ends: Int64Array) -> Int64Array:
        return np.full(len(ends), tree.end[v], np.int64)

    return _best_choice(tree, cost)


def chain_groups(tree: PrefixTree) -> BoolArray:
    """The nodes that attention should read once for all rows below, at any number of levels.

    A row that is not below a chosen node reads its keys by itself. A chosen node costs one read of
    its keys, from the nearest chosen ancestor on, for every tile of `TILE_ROWS` rows, and for
    every row one more partial result to merge.

    Returns:
        Whether each node is chosen, [num_nodes].
    """
    num_below = (tree.last - tree.first).tolist()

    def cost(v: int, ends: Int64Array) -> Int64Array:
        num_tiles = -(-num_below[v] // TILE_ROWS)
        keys: Int64Array = num_tiles * (tree.end[v] - ends) + num_below[v] * MERGE_COST_KEYS
        return keys

    return _best_choice(tree, cost)


def _best_choice(tree: PrefixTree, cost: Callable[[int, Int64Array], Int64Array]) -> BoolArray:
    """The nodes to choose, given what choosing costs. Exact.

    With A the end of the nearest chosen ancestor (0 if there is none):

        f(prompt, A) = A
        f(v, A)      = max( sum_c f(c, A),  sum_c f(c, end(v)) - cost(v, A) )

    Only the ends of v's ancestors matter as A, so a row per node holds all values, and the whole
    takes O(sum of node depths).
    """
    parent = tree.parent.tolist()
    # sums[v]: sum_c f(c, A) for A = 0, the end of each ancestor from the root down, and end(v).
    ends = _ancestor_ends(tree)
    direct = np.bincount(tree.node_of[tree.node_of != NO_NODE], minlength=tree.num_nodes)
    sums = [direct[v] * above for v, above in enumerate(ends)]
    chosen_value: list[Int64Array] = [np.zeros(0, np.int64)] * tree.num_nodes
    for v in range(tree.num_nodes - 1, -1, -1):  # children come after their parents
        chosen_value[v] = sums[v][-1] - cost(v, ends[v][:-1])
        if parent[v] != NO_NODE:
            sums[parent[v]] = sums[parent[v]] + np.maximum(sums[v][:-1], chosen_value[v])
    chosen = np.zeros(tree.num_nodes, np.bool_)
    nearest = [0] * tree.num_nodes  # which column of sums[v] is the nearest chosen ancestor's
    for v in range(tree.num_nodes):
        up = parent[v]
        if up != NO_NODE:
            nearest[v] = len(ends[up]) - 1 if chosen[up] else nearest[up]
        chosen[v] = chosen_value[v][nearest[v]] > sums[v][nearest[v]]
    return chosen


def _ancestor_ends(tree: PrefixTree) -> list[Int64Array]:
    """For each node: 0, the ends of its ancestors from the root down, and its own end."""
    ends: list[Int64Array] = []
    root = np.zeros(1, np.int64)
    for up, end in zip(tree.parent.tolist(), tree.end.tolist(), strict=True):
        above = root if up == NO_NODE else ends[up]
        ends.append(np.append(above, end))
    return ends


@dataclass
class _Branch:
    """A node in the greedy pass, with what hangs from it."""

    node: int
    length: int  # tokens below the branch that it hangs from
    num_prompts: int
    branches: list[_Branch]

    def fork(self) -> None:
        """Let grandchildren hang from here, beside their parents, where that pays."""
        forked: list[_Branch] = []
        for child in self.branches:
            kept = []
            for grandchild in child.branches:
                if (grandchild.num_prompts - 1) * grandchild.length > child.length:
                    grandchild.length += child.length
                    child.num_prompts -= grandchild.num_prompts
                    forked.append(grandchild)
                else:
                    kept.append(grandchild)
            child.branches = kept
        self.branches += forked


def greedy_groups(tree: PrefixTree) -> BoolArray:
    """The pass of BatchLLM's authors (arXiv 2412.03594): fork grandchildren out where that pays.

    From the leaves up, at each node: a grandchild is forked out of its parent, to hang beside it,
    when the tokens that its prompts then share outweigh computing the parent's once more:
    (prompts - 1) * length(grandchild) > length(parent). What is never forked dissolves into the
    prompts of its parent.

    Returns:
        Whether each node ends up as a group, [num_nodes].
    """
    root = _Branch(NO_NODE, 0, len(tree.lengths), [])
    nodes = [
        _Branch(v, int(tree.end[v] - tree.start[v]), int(tree.last[v] - tree.first[v]), [])
        for v in range(tree.num_nodes)
    ]
    for v in range(tree.num_nodes - 1, -1, -1):  # children come after their parents
        nodes[v].fork()
        up = int(tree.parent[v])
        (root if up == NO_NODE else nodes[up]).branches.append(nodes[v])
    root.fork()
    chosen = np.zeros(tree.num_nodes, np.bool_)
    chosen[[branch.node for branch in root.branches if branch.num_prompts]] = True
    return chosen


def saved_tokens(tree: PrefixTree, chosen: BoolArray) -> int:
    """Prompt tokens that need not be computed when prompts reuse `chosen` nodes, one each."""
    attached = _nearest_chosen(tree, chosen)
    attached = attached[attached != NO_NODE]
    return int(tree.end[attached].sum() - tree.end[np.unique(attached)].sum())


def _nearest_chosen(tree: PrefixTree, chosen: BoolArray) -> Int64Array:
    """The deepest chosen node of each prompt, [num_prompts], or NO_NODE."""
    nearest = np.full(tree.num_nodes + 1, NO_NODE, np.int64)
    for v, up in enumerate(tree.parent.tolist()):
        nearest[v] = v if chosen[v] else nearest[up]
    return nearest[tree.node_of]
