"""The plan of a whole set of prompts: what is shared, and in which order the sequences run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.prefix_tree import NO_NODE, PrefixTree, Prompts, build_prefix_tree
from trunkline.engine.sequence import Sequence

# A shared prefix shorter than this is read with each sequence's own keys: merging a partial
# result costs about as much as reading this many keys.
MIN_GROUP_TOKENS = 64


@dataclass(frozen=True)
class Plan:
    """The order of a set of sequences and the prefixes they share.

    In depth-first order over the prefix tree the sequences below a node run one after the other,
    so that few nodes are resident at a time.
    """

    sequences: tuple[Sequence, ...]
    tree: PrefixTree
    order: NDArray[np.int64]  # [num_sequences] indices into `sequences`, first to run first
    is_group: NDArray[np.bool_]  # [num_nodes] attention reads the node once for all rows below it

    def groups(self, index: int) -> list[int]:
        """The nodes that sequence `index` reads as attention groups, shallow to deep."""
        return [v for v in self.tree.chain(int(self.tree.node_of[index])) if self.is_group[v]]

    @property
    def num_group_levels(self) -> int:
        """The most groups on any path from the root."""
        level = self.is_group.astype(np.int64)
        for v, up in enumerate(self.tree.parent.tolist()):
            if up != NO_NODE:
                level[v] += level[up]
        return int(level.max(initial=0))


def make_plan(
    sequences: tuple[Sequence, ...], page_size: int, *, share_prefixes: bool, depth_first: bool
) -> Plan:
    """Plan `sequences`: find what they share and put them in order.

    Args:
        share_prefixes: compute each shared prefix once; otherwise the tree is empty.
        depth_first: run the sequences below a node one after the other; otherwise as given.
    """
    if share_prefixes:
        prompts = Prompts.from_lists([sequence.prompt for sequence in sequences])
        tree = build_prefix_tree(prompts, page_size)
    else:
        tree = _empty_tree(sequences, page_size)
    order = tree.order if depth_first else np.arange(len(sequences), dtype=np.int64)
    return Plan(sequences, tree, order, tree.end - tree.start >= MIN_GROUP_TOKENS)


def _empty_tree(sequences: tuple[Sequence, ...], page_size: int) -> PrefixTree:
    none = np.zeros(0, dtype=np.int64)
    return PrefixTree(
        page_size=page_size,
        parent=none,
        start=none,
        end=none,
        first=none,
        last=none,
        order=np.arange(len(sequences), dtype=np.int64),
        node_of=np.full(len(sequences), NO_NODE, dtype=np.int64),
        lengths=np.array([len(s.prompt) for s in sequences], dtype=np.int64),
    )
