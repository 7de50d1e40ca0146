"""The plan of a whole set of prompts: what is shared, and in which order the sequences run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.grouping import chain_groups, greedy_groups
from trunkline.engine.ordering import Order, order_sequences
from trunkline.engine.prefix_tree import NO_NODE, PrefixTree, Prompts, build_prefix_tree
from trunkline.engine.sequence import Sequence


class Sharing(StrEnum):
    """What is done about prompts that begin alike."""

    PLANNED = "planned"  # found over all requests at once, pinned while needed
    LRU = "lru"  # found page by page when a request starts, evicted by age
    OFF = "off"


class Grouping(StrEnum):
    """Which shared prefixes attention reads once for all rows below them."""

    EXACT = "exact"  # the choice that costs least by the kernel's cost model
    GREEDY = "greedy"  # one level, chosen by BatchLLM's pass
    OFF = "off"  # none: every row reads all of its keys


@dataclass(frozen=True)
class PlannerConfig:
    """How a set of sequences is planned."""

    page_size: int
    sharing: Sharing = Sharing.PLANNED
    order: Order = Order.PLANNED
    grouping: Grouping = Grouping.EXACT
    max_unit_tokens: int = 1 << 62  # see `order_sequences`


@dataclass(frozen=True)
class Plan:
    """The order of a set of sequences and the prefixes they share."""

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
    sequences: tuple[Sequence, ...],
    config: PlannerConfig,
    expected_output: Callable[[Sequence], int],
) -> Plan:
    """Plan `sequences`: find what they share and put them in order.

    Args:
        expected_output: tokens that a sequence will generate, as far as one can tell.
    """
    needs_tree = config.sharing is Sharing.PLANNED or config.order is not Order.ARRIVAL
    if needs_tree:
        groups = [sequence.sharing_group for sequence in sequences]
        prompts = Prompts.from_lists(
            [sequence.prompt for sequence in sequences], groups if any(groups) else None
        )
        tree = build_prefix_tree(prompts, config.page_size)
    else:
        tree = _empty_tree(sequences, config.page_size)
    outputs = np.array([expected_output(sequence) for sequence in sequences], dtype=np.int64)
    deadlines = np.array([sequence.deadline for sequence in sequences], dtype=np.float64)
    priorities = np.array([sequence.priority for sequence in sequences], dtype=np.int64)
    order = order_sequences(
        tree, outputs, deadlines, priorities, config.order, config.max_unit_tokens
    )
    if config.sharing is not Sharing.PLANNED:
        tree = _empty_tree(sequences, config.page_size)
    return Plan(sequences, tree, order, _groups(tree, config.grouping))


def _groups(tree: PrefixTree, grouping: Grouping) -> NDArray[np.bool_]:
    if grouping is Grouping.EXACT:
        return chain_groups(tree)
    if grouping is Grouping.GREEDY:
        return greedy_groups(tree)
    return np.zeros(tree.num_nodes, np.bool_)


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
