"""How the scheduler works: its policy and the limits of a step and of the cache."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trunkline.engine.ordering import Order
from trunkline.engine.planner import Grouping, PlannerConfig, Sharing

# Of the cache, what one unit of the order may take.
MAX_UNIT_SHARE = 0.25


class Policy(StrEnum):
    """How sequences enter the batch."""

    PLANNED = "planned"  # planned order, admitted by predicted peak memory
    FCFS = "fcfs"  # arrival order, admitted while the pages of what is known are free
    STATIC = "static"  # request-level batching: a batch waits for its longest member


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of a step and of the cache.

    Attributes:
        page_size: tokens per page.
        num_pages: pages in the KV cache.
        max_batch_tokens: token budget of a step; also the most sequences that can run.
        order: None means planned order for the planned policy, else order of arrival.
    """

    page_size: int
    num_pages: int
    max_batch_tokens: int
    policy: Policy = Policy.PLANNED
    sharing: Sharing = Sharing.PLANNED
    order: Order | None = None
    grouping: Grouping = Grouping.EXACT

    @property
    def capacity_tokens(self) -> int:
        return self.num_pages * self.page_size

    @property
    def planner(self) -> PlannerConfig:
        default = Order.PLANNED if self.policy is Policy.PLANNED else Order.ARRIVAL
        return PlannerConfig(
            page_size=self.page_size,
            sharing=self.sharing,
            order=self.order or default,
            grouping=self.grouping,
            max_unit_tokens=int(self.capacity_tokens * MAX_UNIT_SHARE),
        )
