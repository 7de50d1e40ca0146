"""A plan that is being carried out: what still waits, and which shared nodes have KV."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.planner import Plan
from trunkline.engine.residency import SharedNodes
from trunkline.engine.sequence import Sequence

NEVER = np.iinfo(np.int64).max


# The rank of the first sequence that was put before a plan; the next ones follow.
FIRST_AHEAD = -(2**62)


class Agenda:
    """The sequences of a plan by rank, their place in its order; a queue of those that wait.

    A sequence may be put before the plan, without a new one: its rank is negative, and it shares
    nothing.
    """

    def __init__(
        self, plan: Plan, nodes: SharedNodes, running: NDArray[np.int64] | None = None
    ) -> None:
        """Begin with `plan`.

        Args:
            running: ranks that do not wait.
        """
        self.plan = plan
        self.nodes = nodes
        num = len(plan.sequences)
        self._is_waiting = np.ones(num, np.bool_)  # [num_ranks]
        if running is not None:
            self._is_waiting[running] = False
        self._heap = np.flatnonzero(self._is_waiting).tolist()  # sorted, so a heap
        rank_of = np.empty(num, np.int64)
        rank_of[plan.order] = np.arange(num)
        self._rank_of_leaf = rank_of[plan.tree.order]  # [num_leaves] by place in the tree
        self._leaf_of_rank = np.empty(num, np.int64)
        self._leaf_of_rank[self._rank_of_leaf] = np.arange(num)
        self._ahead: dict[int, Sequence] = {}  # by rank, until they are through
        self._next_ahead = FIRST_AHEAD

    @property
    def num_waiting(self) -> int:
        return len(self._heap)

    @property
    def waiting(self) -> list[int]:
        """The waiting ranks, in order."""
        return sorted(self._heap)

    def pop(self) -> int:
        """Take the first rank from the queue; it counts as waiting until it is begun."""
        return heapq.heappop(self._heap)

    def begin(self, rank: int) -> None:
        """`rank`, which was popped, runs now."""
        if rank >= 0:
            self._is_waiting[rank] = False

    def push(self, rank: int) -> None:
        """Put `rank` (back) into the queue."""
        heapq.heappush(self._heap, rank)
        if rank >= 0:
            self._is_waiting[rank] = True

    def remove(self, should_remove: Callable[[Sequence], bool]) -> None:
        """Let those of the waiting sequences not wait any more; their shared nodes lose them."""
        removed = [rank for rank in self._heap if should_remove(self.sequence(rank))]
        if not removed:
            return
        gone = set(removed)
        self._heap = [rank for rank in self._heap if rank not in gone]
        heapq.heapify(self._heap)
        for rank in removed:
            self.nodes.retire(self.chain(rank))
            if rank >= 0:
                self._is_waiting[rank] = False
            else:
                del self._ahead[rank]

    def put_ahead(self, sequence: Sequence) -> None:
        """Let `sequence` wait before all of the plan, behind those that were put there earlier."""
        self._ahead[self._next_ahead] = sequence
        self.push(self._next_ahead)
        self._next_ahead += 1

    def end(self, rank: int) -> None:
        """The sequence at `rank`, which ran, is through."""
        self._ahead.pop(rank, None)

    def sequence(self, rank: int) -> Sequence:
        if rank < 0:
            return self._ahead[rank]
        return self.plan.sequences[int(self.plan.order[rank])]

    def chain(self, rank: int) -> list[int]:
        """The shared nodes of the sequence at `rank`, from the root down."""
        if rank < 0:
            return []
        return self.plan.tree.chain(int(self.plan.tree.node_of[self.plan.order[rank]]))

    def groups(self, rank: int) -> list[int]:
        """The attention groups of the sequence at `rank`, shallow to deep."""
        return [] if rank < 0 else self.plan.groups(int(self.plan.order[rank]))

    def leaf(self, rank: int) -> int:
        """The place of the sequence at `rank` among the leaves of the prefix tree."""
        return -1 if rank < 0 else int(self._leaf_of_rank[rank])

    def shared_tokens(self, rank: int) -> int:
        """Tokens of the sequence at `rank` that are in shared nodes."""
        chain = self.chain(rank)
        return int(self.plan.tree.end[chain[-1]]) if chain else 0

    def sequences_below(self, node: int) -> list[Sequence]:
        """The sequences that share `node`, finished ones among them."""
        tree = self.plan.tree
        below = tree.order[tree.first[node] : tree.last[node]]
        return [self.plan.sequences[i] for i in below.tolist()]

    def own_tokens(self, rank: int) -> int:
        """Known tokens of the sequence at `rank` that are in no shared node."""
        return self.sequence(rank).num_tokens - self.shared_tokens(rank)

    def missing_node_pages(self, ranks: list[int]) -> NDArray[np.int64]:
        """Pages that shared nodes need when each of `ranks` starts, [num_ranks]."""
        pages = np.zeros(len(ranks), np.int64)
        counted: set[int] = set()
        for i, rank in enumerate(ranks):
            for node in self.chain(rank):
                if node not in counted:
                    counted.add(node)
                    pages[i] += self.nodes.missing_pages(node)
        return pages

    def furthest_idle(self) -> tuple[int, int] | None:
        """The resident node without a running descendant that is needed last.

        Returns:
            (node, the first waiting rank below it or `NEVER`); None if no node is idle.
        """
        idle = self.nodes.idle()
        if not idle:
            return None
        node = max(idle, key=self._next_use)
        return node, self._next_use(node)

    def drop_idle_needed_after(self, rank: int) -> bool:
        """Drop the idle shared node that is needed last, if that is later than `rank`.

        The plan knows when each node is needed next, so this is Belady's choice. When nothing is
        running, all that the sequence at `rank` does not use may go.

        Returns:
            Whether a node was dropped.
        """
        furthest = self.furthest_idle()
        if furthest is None or furthest[1] <= rank:
            return False
        self.nodes.drop(furthest[0])
        return True

    def _next_use(self, node: int) -> int:
        tree = self.plan.tree
        below = self._rank_of_leaf[tree.first[node] : tree.last[node]]
        waiting = below[self._is_waiting[below]]
        return int(waiting.min()) if len(waiting) else NEVER
