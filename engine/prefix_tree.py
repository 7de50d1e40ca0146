"""The global prefix tree: every prompt prefix that two or more requests share, found at once.

Sort the prompts by their tokens, take the common-prefix length (LCP) of neighbours, and run a
stack over those lengths: the compressed tree falls out in O(total tokens) after the sort. The
construction is the one of a suffix tree from a suffix array and its LCP array (Kasai et al. 2001;
Abouelhoda et al. 2004), applied to whole prompts.

Sorting compares big-endian bytes, so it runs at memcmp speed. Token ids are non-negative int32,
for which the order of the bytes is the order of the ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
NO_NODE = -1


@dataclass(frozen=True)
class Prompts:
    """Token ids of many prompts in one flat buffer.

    Prompt i is ``tokens[offsets[i] : offsets[i + 1]]``.
    """

    tokens: NDArray[np.int32]  # [total_tokens]
    offsets: IntArray  # [num_prompts + 1]
    # [num_prompts] a prompt shares prefixes with prompts of its own group only; None: one group.
    groups: IntArray | None = None

    @classmethod
    def from_lists(
        cls,
        prompts: Sequence[Sequence[int] | NDArray[np.int32]],
        groups: Sequence[int] | None = None,
    ) -> Prompts:
        offsets = np.zeros(len(prompts) + 1, dtype=np.int64)
        np.cumsum([len(prompt) for prompt in prompts], out=offsets[1:])
        tokens = np.empty(int(offsets[-1]), dtype=np.int32)
        for index, prompt in enumerate(prompts):
            tokens[offsets[index] : offsets[index + 1]] = prompt
        return cls(tokens, offsets, None if groups is None else np.array(groups, np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> IntArray:
        """Tokens per prompt, [num_prompts]."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class PrefixTree:
    """The shared prefixes of a set of prompts, as a tree over whole pages.

    Node v covers the token positions ``[start[v], end[v])`` of every prompt below it; both are
    multiples of ``page_size``, and what does not fill a page is left to the children. Nodes are in
    depth-first order (a parent before its children, siblings by token order), so the prompts below
    v are the contiguous range ``order[first[v] : last[v]]`` and a parent's index is smaller than
    its children's. A node has at least two prompts below it: what one prompt does not share is no
    node but that prompt's own part, ``[end[node_of[i]], length_i)``, which is never empty because
    the last prompt token has to be computed to get logits.
    """

    page_size: int
    parent: IntArray  # [num_nodes], NO_NODE for a root
    start: IntArray  # [num_nodes] tokens
    end: IntArray  # [num_nodes] tokens
    first: IntArray  # [num_nodes] index into `order`
    last: IntArray  # [num_nodes] index into `order`, exclusive
    order: IntArray  # [num_prompts] prompt indices, sorted by tokens
    node_of: IntArray  # [num_prompts] deepest node of each prompt, NO_NODE if it shares nothing
    lengths: IntArray  # [num_prompts] tokens per prompt

    @property
    def num_nodes(self) -> int:
        return len(self.parent)

    @property
    def shared_lengths(self) -> IntArray:
        """Tokens of each prompt that its nodes cover, [num_prompts]."""
        ends = np.append(self.end, 0)  # NO_NODE == -1 picks the appended zero
        return ends[self.node_of]

    @property
    def unique_tokens(self) -> int:
        """Prompt tokens to compute when each node is computed once."""
        own = self.lengths - self.shared_lengths
        return int((self.end - self.start).sum() + own.sum())

    def chain(self, node: int) -> list[int]:
        """The nodes from the root down to `node`, inclusive; empty for NO_NODE."""
        chain = []
        while node != NO_NODE:
            chain.append(node)
            node = int(self.parent[node])
        return chain[::-1]

    def check_invariants(self) -> None:
        """Raise AssertionError when the tree contradicts its own description."""
        assert sorted(self.order.tolist()) == list(range(len(self.lengths)))
        for v in range(self.num_nodes):
            up = int(self.parent[v])
            assert up < v
            assert self.start[v] == (0 if up == NO_NODE else self.end[up])
            assert self.end[v] > self.start[v]
            assert self.end[v] % self.page_size == 0
            assert self.last[v] - self.first[v] >= 2
            if up != NO_NODE:
                assert self.first[up] <= self.first[v] < self.last[v] <= self.last[up]
        assert (self.shared_lengths < np.maximum(self.lengths, 1)).all()


def build_prefix_tree(prompts: Prompts, page_size: int) -> PrefixTree:
    """Find every shared prefix of `prompts`, floored to whole pages of `page_size` tokens.

    Raises:
        ValueError: a prompt is empty, a token id is negative, or `page_size` is not positive.
    """
    if page_size < 1:
        raise ValueError(f"page_size is {page_size}; it must be at least 1")
    lengths = prompts.lengths
    if len(lengths) and int(lengths.min()) < 1:
        raise ValueError("a prompt has no tokens; every prompt needs at least one")
    if len(prompts.tokens) and int(prompts.tokens.min()) < 0:
        raise ValueError("a token id is negative; token ids start at 0")
    order, lcp = _sorted_with_lcp(prompts)
    return _tree_from_lcp(order, lcp, lengths, page_size)


def _sorted_with_lcp(prompts: Prompts) -> tuple[IntArray, IntArray]:
    """The prompts' lexicographic order, and the common-prefix length of neighbours.

    Returns:
        order [num_prompts], and lcp [num_prompts - 1] in tokens, where lcp[i] belongs to
        order[i] and order[i + 1].
    """
    keys = [prompts[i].astype(">i4").tobytes() for i in range(len(prompts))]
    if prompts.groups is not None:
        prefixes = prompts.groups.astype(">u8")
        keys = [prefixes[i].tobytes() + key for i, key in enumerate(keys)]
    ranked = sorted(range(len(keys)), key=keys.__getitem__)
    del keys
    lcp = np.zeros(max(len(ranked) - 1, 0), dtype=np.int64)
    for i in range(len(lcp)):
        a, b = prompts[ranked[i]], prompts[ranked[i + 1]]
        shorter = min(len(a), len(b))
        different = a[:shorter] != b[:shorter]
        at = int(different.argmax()) if shorter else 0
        lcp[i] = at if shorter and different[at] else shorter
    order = np.array(ranked, dtype=np.int64)
    if prompts.groups is not None:
        lcp[np.diff(prompts.groups[order]) != 0] = 0
    return order, lcp


def _tree_from_lcp(order: IntArray, lcp: IntArray, lengths: IntArray, page_size: int) -> PrefixTree:
    """Stack construction over page-floored LCPs.

    An open node is (end, first prompt, parent's place). Walking the neighbours left to right, an
    LCP shorter than the top's end closes it; a longer one opens a node that starts at the left
    neighbour. Each prompt's shared part stays below its length, so that its last token is its own.
    """
    n = len(order)
    # A neighbour pair may share all of the shorter prompt; that prompt's last token stays its own.
    sorted_lengths = lengths[order]
    limit = np.minimum(sorted_lengths[:-1], sorted_lengths[1:]) - 1
    shared = (np.minimum(lcp, limit) // page_size * page_size).tolist()

    first: list[int] = []
    last: list[int] = []
    end: list[int] = []
    stack: list[int] = []  # indices of open nodes, ends strictly increasing
    for i, depth in enumerate(shared):
        left = i
        while stack and end[stack[-1]] > depth:
            closed = stack.pop()
            last[closed] = i + 1
            left = first[closed]
        if depth and (not stack or end[stack[-1]] < depth):
            stack.append(len(end))
            end.append(depth)
            first.append(left)
            last.append(n)

    # Preorder: by first prompt, then shallow before deep.
    ends = np.array(end, dtype=np.int64)
    firsts = np.array(first, dtype=np.int64)
    lasts = np.array(last, dtype=np.int64)
    preorder = np.lexsort((ends, firsts))
    ends, firsts, lasts = ends[preorder], firsts[preorder], lasts[preorder]

    parent = np.full(len(ends), NO_NODE, dtype=np.int64)
    start = np.zeros(len(ends), dtype=np.int64)
    node_at = np.full(n, NO_NODE, dtype=np.int64)  # by place in `order`
    open_nodes: list[int] = []
    for v, (a, b) in enumerate(zip(firsts.tolist(), lasts.tolist(), strict=True)):
        while open_nodes and lasts[open_nodes[-1]] <= a:
            open_nodes.pop()
        if open_nodes:
            parent[v] = open_nodes[-1]
            start[v] = ends[open_nodes[-1]]
        open_nodes.append(v)
        node_at[a:b] = v  # children come later and overwrite their part
    node_of = np.empty(n, dtype=np.int64)
    node_of[order] = node_at
    return PrefixTree(page_size, parent, start, ends, firsts, lasts, order, node_of, lengths)
