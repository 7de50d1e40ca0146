"""The prefix tree against a brute-force reading of what "shared" means."""

import random

import pytest

from trunkline.engine.prefix_tree import NO_NODE, Prompts, build_prefix_tree


def brute_force_unique_tokens(prompts, page_size):
    """Tokens to compute when every whole page that two prompts share is computed once."""
    pages = set()
    own = 0
    counts = {}
    for prompt in prompts:
        for end in range(page_size, len(prompt), page_size):
            counts[tuple(prompt[:end])] = counts.get(tuple(prompt[:end]), 0) + 1
    for prompt in prompts:
        shared = 0
        for end in range(page_size, len(prompt), page_size):
            if counts[tuple(prompt[:end])] > 1:
                pages.add(tuple(prompt[:end]))
                shared = end
        own += len(prompt) - shared
    return own + page_size * len(pages)


@pytest.mark.parametrize("page_size", [1, 2, 3, 8])
def test_random_prompts_over_two_tokens(page_size):
    rng = random.Random(page_size)
    for _ in range(500):
        prompts = [
            [rng.randrange(2) for _ in range(rng.randrange(1, 14))]
            for _ in range(rng.randrange(0, 12))
        ]
        tree = build_prefix_tree(Prompts.from_lists(prompts), page_size)
        tree.check_invariants()
        assert tree.unique_tokens == brute_force_unique_tokens(prompts, page_size)
        for node in range(tree.num_nodes):
            below = tree.order[tree.first[node] : tree.last[node]]
            assert len({tuple(prompts[i][: tree.end[node]]) for i in below}) == 1


def test_a_prompt_that_shares_nothing_has_no_node():
    tree = build_prefix_tree(Prompts.from_lists([[1, 2, 3], [4, 5, 6], [4, 5, 7]]), 1)
    assert tree.node_of[0] == NO_NODE
    assert tree.shared_lengths.tolist() == [0, 2, 2]
    assert tree.chain(int(tree.node_of[1])) == [0]


def test_identical_prompts_share_all_but_the_last_token():
    tree = build_prefix_tree(Prompts.from_lists([[5, 6, 7]] * 3), 1)
    assert tree.shared_lengths.tolist() == [2, 2, 2]
    assert tree.unique_tokens == 5


def test_token_order_is_numeric_across_byte_boundaries():
    tree = build_prefix_tree(Prompts.from_lists([[70_000], [255], [256]]), 1)
    assert tree.order.tolist() == [1, 2, 0]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="page_size is 0"):
        build_prefix_tree(Prompts.from_lists([[1]]), 0)
    with pytest.raises(ValueError, match="no tokens"):
        build_prefix_tree(Prompts.from_lists([[1], []]), 4)
    with pytest.raises(ValueError, match="negative"):
        build_prefix_tree(Prompts.from_lists([[-1]]), 4)
