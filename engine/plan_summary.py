"""What people may want to know of a batch's plan while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from trunkline.engine.planner import Plan, make_plan
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import Sequence
from trunkline.engine.simulation.floor import workload_floor
from trunkline.engine.simulation.hardware import Hardware, ModelShape
from trunkline.engine.simulation.workloads import WorkItem

# The largest groups are listed; there may be tens of thousands.
MAX_GROUPS = 50

# How near the engine comes to the least possible time: a guess, until batches have ended.
FIRST_SHARE_OF_FLOOR = 0.4
LEARNING_RATE = 0.5


class PlanSummariser:
    """Summarises plans, and learns from what batches really took."""

    def __init__(self, config: SchedulerConfig, hardware: Hardware, shape: ModelShape) -> None:
        self._config = config
        self._hardware = hardware
        self._shape = shape
        self._share_of_floor = FIRST_SHARE_OF_FLOOR

    def learn(self, floor_seconds: float, actual_seconds: float) -> None:
        """A batch whose floor was `floor_seconds` took `actual_seconds`, with nothing beside it."""
        reached = min(floor_seconds / max(actual_seconds, 1e-9), 1.0)
        self._share_of_floor += LEARNING_RATE * (reached - self._share_of_floor)

    def summarise(
        self, sequences: list[Sequence], expected_output: Callable[[Sequence], int]
    ) -> dict[str, Any]:
        """The plan of one batch by itself; what it shares with other batches comes on top.

        Args:
            expected_output: tokens that a sequence will generate, as far as one can tell.

        Returns:
            An object for JSON.
        """
        started = time.perf_counter()
        planner = self._config.planner
        plan = make_plan(tuple(sequences), planner, expected_output)
        plan_seconds = time.perf_counter() - started
        outputs = [expected_output(sequence) for sequence in sequences]
        logical, unique = int(plan.tree.lengths.sum()), plan.tree.unique_tokens
        items = [WorkItem(s.prompt, max(n, 1)) for s, n in zip(sequences, outputs, strict=True)]
        floor = workload_floor(items, self._hardware, self._shape)
        return {
            "planned_at": int(time.time()),
            "scheduler": self._config.policy.value,
            "prefix_sharing": planner.sharing.value,
            "order": planner.order.value,
            "grouping": planner.grouping.value,
            "sequences": len(sequences),
            "prompt_tokens": logical,
            "unique_prompt_tokens": unique,
            "saved_share": 1 - unique / max(logical, 1),
            "expected_output_tokens": sum(outputs),
            "shared_prefixes": plan.tree.num_nodes,
            "groups": _largest_groups(plan),
            "predicted_seconds": floor.seconds / self._share_of_floor,
            "floor_seconds": floor.seconds,
            "plan_seconds": plan_seconds,
        }


def _largest_groups(plan: Plan) -> list[dict[str, int]]:
    """The shared prefixes that attention reads once, those that save the most first."""
    tree = plan.tree
    groups = np.flatnonzero(plan.is_group)
    requests = (tree.last - tree.first)[groups]
    tokens = (tree.end - tree.start)[groups]
    largest = np.argsort(-(requests - 1) * tokens, kind="stable")[:MAX_GROUPS]
    rank_of = np.empty(len(plan.order), np.int64)
    rank_of[plan.order] = np.arange(len(plan.order))
    return [
        {
            "requests": int(requests[i]),
            "prefix_tokens": int(tokens[i]),
            "prefix_start": int(tree.start[groups[i]]),
            "first_in_order": int(
                rank_of[tree.order[tree.first[groups[i]] : tree.last[groups[i]]]].min()
            ),
        }
        for i in largest.tolist()
    ]
