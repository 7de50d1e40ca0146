"""Which nodes of the prefix tree have KV in the cache, and for how long.

A node is pinned from the moment its first token is computed until its last descendant has
finished, and freed at that moment: lifetime instead of LRU (BatchLLM, section 4). No eviction
policy can drop what is about to be used. Only when memory is so short that nothing can run are
nodes without a running descendant dropped, to be computed again.
"""

from __future__ import annotations

import numpy as np

from trunkline.engine.block_pool import PagePool, Pages
from trunkline.engine.prefix_tree import PrefixTree

NO_LEADER = -1


class SharedNodes:
    """The shared nodes of one plan.

    Each node that is not wholly computed has at most one *leader*, the running sequence that
    computes it on the way to its own tokens; the others below wait for it. Nodes are computed from
    the root down, so a node with computed tokens has wholly computed ancestors.
    """

    def __init__(self, tree: PrefixTree, pool: PagePool) -> None:
        self.tree = tree
        self._pool = pool
        self.computed = tree.start.copy()  # [num_nodes] position up to which KV is there
        self.leader = np.full(tree.num_nodes, NO_LEADER, np.int64)  # [num_nodes] slot
        self.num_running = np.zeros(tree.num_nodes, np.int64)  # [num_nodes] sequences below
        self.num_unfinished = tree.last - tree.first  # [num_nodes] sequences below
        self.pages: dict[int, Pages] = {}  # resident nodes
        self.num_pages = 0  # held by all nodes

    def size_in_pages(self, node: int) -> int:
        return int(self.tree.end[node] - self.tree.start[node]) // self.tree.page_size

    def is_complete(self, node: int) -> bool:
        return bool(self.computed[node] >= self.tree.end[node])

    def missing_pages(self, node: int) -> int:
        """Pages that the node needs and does not hold."""
        held = self.pages.get(node)
        return self.size_in_pages(node) - (0 if held is None else len(held))

    def acquire(self, chain: list[int]) -> list[Pages]:
        """Count one more running sequence below each node of `chain`; allocate what is missing.

        Returns:
            The pages of each node, in the order of `chain`.

        Raises:
            OutOfPagesError: the pool has too few pages. The caller checks before.
        """
        for node in chain:
            missing = self.missing_pages(node)
            if missing:
                self._append_pages(node, self._pool.allocate(missing))
        self.count_running(chain)
        return [self.pages[node] for node in chain]

    def computed_up_to(self, chain: list[int], position: int) -> int:
        """The first position at or after `position` without KV, for a sequence below `chain`.

        `position` is where the sequence itself has come to; others may have computed more of the
        nodes of `chain` since.
        """
        for node in chain:
            if position < self.tree.end[node]:
                position = max(position, int(self.computed[node]))
                if not self.is_complete(node):
                    break
        return position

    def first_incomplete(self, chain: list[int]) -> int | None:
        return next((node for node in chain if not self.is_complete(node)), None)

    def lead(self, chain: list[int], slot: int, position: int) -> None:
        """`slot` computes its tokens up to `position`, those of the nodes of `chain` among them."""
        for node in chain:
            if self.is_complete(node):
                continue
            self.computed[node] = max(
                int(self.computed[node]), min(position, int(self.tree.end[node]))
            )
            if not self.is_complete(node):
                self.leader[node] = slot
                break
            self.leader[node] = NO_LEADER

    def inherit(self, chain: list[int], pages: Pages, computed: int) -> None:
        """Take over `pages`, which lie from position 0 on, for the nodes of `chain` without any.

        Args:
            pages: held by somebody already; the nodes become holders too.
            computed: position up to which `pages` hold KV.
        """
        size = self.tree.page_size
        for node in chain:
            start, end = int(self.tree.start[node]), int(self.tree.end[node])
            part = pages[start // size : end // size]
            if node not in self.pages and len(part):
                self._pool.retain(part)
                self._append_pages(node, part)
                self.computed[node] = min(max(computed, start), end)

    def count_running(self, chain: list[int]) -> None:
        """Count one more running sequence below each node of `chain`."""
        self.num_running[chain] += 1

    def _append_pages(self, node: int, pages: Pages) -> None:
        held = self.pages.get(node)
        self.pages[node] = pages if held is None else np.concatenate([held, pages])
        self.num_pages += len(pages)

    def leave(self, chain: list[int], slot: int, *, finished: bool) -> None:
        """A sequence below `chain` stops running in `slot`; finished for good, or preempted."""
        for node in chain:
            self.num_running[node] -= 1
            if self.leader[node] == slot:
                self.leader[node] = NO_LEADER
        if finished:
            self.retire(chain)

    def retire(self, chain: list[int]) -> None:
        """A sequence below `chain` that does not run needs its nodes no more."""
        for node in chain:
            self.num_unfinished[node] -= 1
            if self.num_unfinished[node] == 0:
                self._free(node)

    def idle(self) -> list[int]:
        """Resident nodes without a running descendant, and so without a resident child's one."""
        return [node for node in self.pages if self.num_running[node] == 0]

    def drop(self, node: int) -> None:
        """Free an idle node; with it go the nodes below, which are of no use without it."""
        below = self.tree.last[node]
        for other in [v for v in self.pages if v >= node and self.tree.first[v] < below]:
            self._free(other)

    def release_all(self) -> None:
        for node in list(self.pages):
            self._free(node)

    def _free(self, node: int) -> None:
        pages = self.pages.pop(node, None)
        if pages is not None:
            self._pool.release(pages)
            self.num_pages -= len(pages)
        self.computed[node] = self.tree.start[node]

    def check_invariants(self) -> None:
        """Raise AssertionError when counts, pages and computed tokens contradict each other."""
        assert self.num_pages == sum(len(pages) for pages in self.pages.values())
        for node in range(self.tree.num_nodes):
            start, end = int(self.tree.start[node]), int(self.tree.end[node])
            assert start <= self.computed[node] <= end
            assert 0 <= self.num_running[node] <= self.num_unfinished[node]
            if self.computed[node] > start:
                room = len(self.pages[node]) * self.tree.page_size
                assert self.computed[node] - start <= room
                up = int(self.tree.parent[node])
                assert up < 0 or self.is_complete(up)
            if self.num_unfinished[node] == 0:
                assert node not in self.pages
