"""What sharing will save, before anything runs: the numbers of `trunkline plan`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from trunkline.engine.grouping import exact_groups, greedy_groups, saved_tokens
from trunkline.engine.prefix_tree import PrefixTree, Prompts, build_prefix_tree


@dataclass(frozen=True)
class Savings:
    """Prompt tokens with and without sharing, and the memory that the whole set would take."""

    prompts: int
    logical_tokens: int  # all prompts' tokens
    unique_tokens: int  # tokens to compute when every shared prefix is computed once
    saved_share: float  # of logical tokens, sharing at every level
    saved_share_single_exact: float  # sharing at one level, the best choice
    saved_share_single_greedy: float  # sharing at one level, BatchLLM's greedy choice
    groups: int  # nodes that the best single level keeps
    tree_nodes: int
    peak_kv_tokens: int  # KV cache with which no request would ever wait for memory
    tokenize_seconds: float
    plan_seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        lines = {
            "prompts": f"{self.prompts:,}",
            "prompt tokens": f"{self.logical_tokens:,}",
            "to compute when shared": f"{self.unique_tokens:,}",
            "saved, sharing at every level": f"{self.saved_share:.1%}",
            "saved, one level, best choice": f"{self.saved_share_single_exact:.1%}",
            "saved, one level, greedy choice": f"{self.saved_share_single_greedy:.1%}",
            "shared prefixes": f"{self.tree_nodes:,}",
            "groups of the best level": f"{self.groups:,}",
            "KV cache for no wait at all": f"{self.peak_kv_tokens:,} tokens",
            "time to tokenize": f"{self.tokenize_seconds:.2f} s",
            "time to plan": f"{self.plan_seconds:.2f} s",
        }
        return "\n".join(f"{name:34}{value:>16}" for name, value in lines.items())


def estimate_savings(
    prompts: Prompts, page_size: int, output_tokens: int, tokenize_seconds: float
) -> tuple[Savings, PrefixTree]:
    """Plan `prompts` and count.

    Args:
        output_tokens: the most tokens that all prompts together may generate.
        tokenize_seconds: what it took to get the prompts' tokens; reported as it is.

    Returns:
        The numbers, and the tree that they were counted on.
    """
    started = time.perf_counter()
    tree = build_prefix_tree(prompts, page_size)
    logical = len(prompts.tokens)
    groups = exact_groups(tree)
    exact = saved_tokens(tree, groups)
    greedy = saved_tokens(tree, greedy_groups(tree))
    unique = tree.unique_tokens
    savings = Savings(
        prompts=len(prompts),
        logical_tokens=logical,
        unique_tokens=unique,
        saved_share=1 - unique / max(logical, 1),
        saved_share_single_exact=exact / max(logical, 1),
        saved_share_single_greedy=greedy / max(logical, 1),
        groups=int(groups.sum()),
        tree_nodes=tree.num_nodes,
        peak_kv_tokens=unique + output_tokens,
        tokenize_seconds=tokenize_seconds,
        plan_seconds=time.perf_counter() - started,
    )
    return savings, tree
