"""Runs a workload through planner and scheduler on paper hardware."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from trunkline.engine.ordering import Order
from trunkline.engine.planner import Grouping, Sharing
from trunkline.engine.scheduler import Scheduler
from trunkline.engine.scheduler_config import Policy, SchedulerConfig
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.simulation.device import SimulatedDevice
from trunkline.engine.simulation.floor import workload_floor
from trunkline.engine.simulation.hardware import Hardware, ModelShape
from trunkline.engine.simulation.workloads import WorkItem

# Of the memory that the weights leave.
KV_SHARE = 0.9
PAGE_SIZE = 16


@dataclass(frozen=True)
class Setting:
    """One way to run the engine."""

    scheduler: Policy
    sharing: Sharing
    order: Order | None = None
    grouping: Grouping = Grouping.EXACT

    @property
    def label(self) -> str:
        order = "" if self.order is None else f" {self.order}"
        grouping = "" if self.grouping is Grouping.EXACT else f" grouping={self.grouping}"
        return f"{self.scheduler}+{self.sharing}{order}{grouping}"


PLANNED = Setting(Policy.PLANNED, Sharing.PLANNED)
# What other engines do, at their best and at their plainest.
FCFS_LRU = Setting(Policy.FCFS, Sharing.LRU, grouping=Grouping.OFF)
STATIC_OFF = Setting(Policy.STATIC, Sharing.OFF, grouping=Grouping.OFF)
ALL_SETTINGS = (
    PLANNED,
    *(Setting(Policy.PLANNED, Sharing.PLANNED, order) for order in (Order.RATIO, Order.DFS)),
    Setting(Policy.FCFS, Sharing.PLANNED),
    FCFS_LRU,
    Setting(Policy.FCFS, Sharing.OFF, grouping=Grouping.OFF),
    STATIC_OFF,
)


@dataclass(frozen=True)
class Simulation:
    """What a run would be like."""

    setting: str
    requests: int
    seconds: float
    steps: int
    peak_kv_tokens: int
    kv_capacity_tokens: int
    saved_share: float  # of the prompt tokens
    idle_share: float  # of the time, the arithmetic units
    share_of_floor: float  # floor over seconds
    preemptions: int
    longest_wait_seconds: float  # of a request, for its first token
    host_seconds: float  # what planning and scheduling took here

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def simulate(
    items: list[WorkItem],
    hardware: Hardware,
    shape: ModelShape,
    setting: Setting,
    max_batch_tokens: int | None = None,
) -> Simulation:
    """Run `items` under `setting`.

    Raises:
        ValueError: the model does not fit the hardware, or a request does not fit the KV cache.
    """
    kv_bytes = (hardware.memory_bytes - shape.weight_bytes) * KV_SHARE
    num_pages = int(kv_bytes // (PAGE_SIZE * shape.kv_bytes_per_token))
    if num_pages < 1:
        raise ValueError(
            f"{shape.name} takes {shape.weight_bytes / 1e9:.0f} GB; "
            f"{hardware.name} has {hardware.memory_bytes / 1e9:.0f} GB"
        )
    config = SchedulerConfig(
        page_size=PAGE_SIZE,
        num_pages=num_pages,
        max_batch_tokens=max_batch_tokens or hardware.step_tokens,
        policy=setting.scheduler,
        sharing=setting.sharing,
        order=setting.order,
        grouping=setting.grouping,
    )
    started = time.perf_counter()
    scheduler = Scheduler(config)
    device = SimulatedDevice(hardware, shape)
    sequences = [
        Sequence(i, 0, item.prompt, SamplingParams(max_tokens=item.num_output_tokens))
        for i, item in enumerate(items)
    ]
    scheduler.add(sequences)
    longest_wait = 0.0
    while (plan := scheduler.schedule()) is not None:
        result = device.run(plan, scheduler.sequences)
        first = (scheduler.sequences[slot] for slot in result.sequence.tolist())
        if any(not sequence.output for sequence in first):
            longest_wait = device.seconds
        scheduler.commit(result)
    logical = sum(len(item.prompt) for item in items)
    floor = workload_floor(items, hardware, shape)
    return Simulation(
        setting=setting.label,
        requests=len(items),
        seconds=device.seconds,
        steps=scheduler.num_steps,
        peak_kv_tokens=scheduler.peak_kv_pages * PAGE_SIZE,
        kv_capacity_tokens=config.capacity_tokens,
        saved_share=1 - scheduler.num_computed_prompt_tokens / logical,
        idle_share=1 - device.busy_seconds / device.seconds,
        share_of_floor=floor.seconds / device.seconds,
        preemptions=scheduler.num_preemptions,
        longest_wait_seconds=longest_wait,
        host_seconds=time.perf_counter() - started,
    )
