"""One level of sharing: the exact choice against brute force, and against the greedy pass."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from tests.grids import slow
from trunkline.engine.grouping import exact_groups, greedy_groups, saved_tokens
from trunkline.engine.prefix_tree import PrefixTree, Prompts, build_prefix_tree


def random_tree(rng: random.Random, num_prompts: int) -> PrefixTree:
    prompts: list[list[int]] = [[0] * rng.randint(1, 5)]
    while len(prompts) < num_prompts:
        stem = rng.choice(prompts)
        stem = stem[: rng.randint(0, len(stem))]
        prompts.append(stem + [rng.randint(0, 1) for _ in range(rng.randint(1, 8))])
    return build_prefix_tree(Prompts.from_lists(prompts), page_size=1)


@pytest.mark.parametrize("seed", [*range(60), *slow(*range(60, 500))])
def test_exact_equals_brute_force_and_never_saves_less_than_greedy(seed: int) -> None:
    rng = random.Random(seed)
    tree = random_tree(rng, rng.randint(2, 10))
    best = max(
        saved_tokens(tree, np.array(choice, np.bool_))
        for choice in itertools.product([False, True], repeat=tree.num_nodes)
    )
    exact = saved_tokens(tree, exact_groups(tree))
    assert exact == best
    assert saved_tokens(tree, greedy_groups(tree)) <= exact


def test_the_savings_of_a_known_hierarchy() -> None:
    """A system prompt of 600, 20 tasks of 300, 50 documents each of 200, 3 questions each of 30."""
    rng = np.random.default_rng(0)
    system = rng.integers(0, 50_000, 600)
    prompts = []
    for _ in range(20):
        task = rng.integers(0, 50_000, 300)
        for _ in range(50):
            document = rng.integers(0, 50_000, 200)
            for _ in range(3):
                question = rng.integers(0, 50_000, 30)
                parts = [system, task, document, question]
                prompts.append(np.concatenate(parts).astype(np.int32))
    tree = build_prefix_tree(Prompts.from_lists(prompts), page_size=1)
    logical = int(tree.lengths.sum())
    assert logical == 3_390_000
    assert abs(tree.unique_tokens - 296_600) < 50, "a few tokens are alike by chance"
    shares = {
        "every level": 1 - tree.unique_tokens / logical,
        "exact": saved_tokens(tree, exact_groups(tree)) / logical,
        "greedy": saved_tokens(tree, greedy_groups(tree)) / logical,
    }
    assert shares == pytest.approx(
        {"every level": 0.9125, "exact": 0.791, "greedy": 0.649}, abs=0.003
    )
