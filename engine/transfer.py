"""Carries the KV that is in the cache from one plan over to the next.

A new plan is made whenever sequences are added or dropped. Its tree has other nodes than the old
one, over the same tokens; no KV is copied or lost: pages only change holders.
"""

from __future__ import annotations

import numpy as np

from trunkline.engine.agenda import Agenda
from trunkline.engine.block_pool import PagePool, Pages
from trunkline.engine.planner import Plan
from trunkline.engine.residency import SharedNodes
from trunkline.engine.slots import SlotTable

Chains = dict[int, list[int]]  # slot -> nodes from the root down


def transfer_kv(
    table: SlotTable,
    running: list[int],
    agenda: Agenda,
    old_chains: Chains,
    plan: Plan,
    pool: PagePool,
) -> tuple[SharedNodes, Chains]:
    """Make `plan` the owner of all KV that its sequences can use; free the rest.

    Every running sequence must be in `plan`. `table` is updated to it: page tables, ranks, groups.

    Returns:
        The new plan's nodes, and the chain of each running slot.
    """
    old_plan, old = agenda.plan, agenda.nodes
    size = plan.tree.page_size
    index_of = {id(sequence): i for i, sequence in enumerate(plan.sequences)}
    rank_of = np.empty(len(plan.sequences), np.int64)
    rank_of[plan.order] = np.arange(len(plan.sequences))
    nodes = SharedNodes(plan.tree, pool)

    # Every new holder joins before any old one leaves, so that no page is free in between.
    table_of = {slot: table.table[slot, : table.table_len[slot]].copy() for slot in running}
    computed = {
        slot: old.computed_up_to(old_chains[slot], int(table.computed[slot])) for slot in running
    }
    index_of_slot = {slot: index_of[id(table.sequences[slot])] for slot in running}
    chains = {
        slot: plan.tree.chain(int(plan.tree.node_of[index]))
        for slot, index in index_of_slot.items()
    }
    holders = [(computed[slot], table_of[slot], chains[slot]) for slot in running]
    holders += _idle_prefixes(old_plan, old, plan, index_of)
    # Those that are furthest go first: the pages of a node are those of its furthest descendant.
    for position, pages, chain in sorted(holders, key=lambda holder: holder[0], reverse=True):
        nodes.inherit(chain, pages, position)

    own: dict[int, Pages] = {}
    for slot in running:
        own_start = int(plan.tree.end[chains[slot][-1]]) if chains[slot] else 0
        own[slot] = table_of[slot][own_start // size :]
        pool.retain(own[slot])
    for slot in running:
        pool.release(table.own_pages(slot, size))
    old.release_all()

    leaf_of = np.empty(len(plan.sequences), np.int64)
    leaf_of[plan.tree.order] = np.arange(len(plan.sequences))
    table.reset_groups(plan.num_group_levels)
    for slot in running:
        chain = chains[slot]
        nodes.count_running(chain)
        table.own_start[slot] = int(plan.tree.end[chain[-1]]) if chain else 0
        shared = [nodes.pages[node] for node in chain]
        table.table[slot, : table.table_len[slot]] = np.concatenate([*shared, own[slot]])
        table.computed[slot] = computed[slot]
        table.rank[slot] = rank_of[index_of_slot[slot]]
        table.leaf[slot] = leaf_of[index_of_slot[slot]]
        table.set_groups(slot, plan.groups(index_of_slot[slot]), plan.tree.end)
    return nodes, chains


def _idle_prefixes(
    old_plan: Plan, old: SharedNodes, plan: Plan, index_of: dict[int, int]
) -> list[tuple[int, Pages, list[int]]]:
    """The KV of resident nodes that only waiting sequences can use.

    Returns:
        For each: the position up to which it is computed, its pages from position 0 on, and the
        chain in the new plan of one sequence that can use it.
    """
    tree = old_plan.tree
    found = []
    for node in old.pages:
        if old.num_running[node] or old.computed[node] == tree.start[node]:
            continue
        below = tree.order[tree.first[node] : tree.last[node]]
        members = (id(old_plan.sequences[i]) for i in below.tolist())
        index = next((index_of[member] for member in members if member in index_of), None)
        if index is not None:
            pages = np.concatenate([old.pages[v] for v in tree.chain(node)])
            chain = plan.tree.chain(int(plan.tree.node_of[index]))
            found.append((int(old.computed[node]), pages, chain))
    return found
