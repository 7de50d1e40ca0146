"""The plan beside what other engines do, on paper hardware."""

from __future__ import annotations

import random

import numpy as np
import pytest

from trunkline.engine.ordering import Order
from trunkline.engine.planner import Sharing
from trunkline.engine.prefix_tree import Prompts, build_prefix_tree
from trunkline.engine.scheduler import Scheduler
from trunkline.engine.scheduler_config import Policy, SchedulerConfig
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.simulation.device import SimulatedDevice
from trunkline.engine.simulation.floor import workload_floor
from trunkline.engine.simulation.hardware import HARDWARE, MODEL_SHAPES
from trunkline.engine.simulation.simulate import (
    FCFS_LRU,
    PLANNED,
    STATIC_OFF,
    Setting,
    Simulation,
    simulate,
)
from trunkline.engine.simulation.workloads import WORKLOADS, WorkItem, make_workload

H200 = HARDWARE["h200"]
LLAMA = MODEL_SHAPES["llama-3.1-8b"]


def run(items: list[WorkItem], setting: Setting) -> Simulation:
    result = simulate(items, H200, LLAMA, setting)
    assert result.peak_kv_tokens <= result.kv_capacity_tokens
    assert 0 < result.share_of_floor <= 1
    return result


@pytest.mark.parametrize(
    ("workload", "count", "least_gain"),
    [
        ("W5", 2000, 1.2),
        ("W10", 3000, 1.3),
        ("W11", 1000, 1.3),
        pytest.param("W1", 3000, 1.3, marks=pytest.mark.slow),
        pytest.param("W3", 8000, 1.3, marks=pytest.mark.slow),
        pytest.param("W8", 3000, 1.15, marks=pytest.mark.slow),
        pytest.param("W9", 2000, 0.99, marks=pytest.mark.slow),
    ],
)
def test_the_plan_is_never_slower_than_looking_back(
    workload: str, count: int, least_gain: float
) -> None:
    items = make_workload(workload, count)
    planned, lru = run(items, PLANNED), run(items, FCFS_LRU)
    assert lru.seconds / planned.seconds >= least_gain
    assert planned.saved_share >= lru.saved_share
    assert planned.preemptions == 0


def test_static_batching_is_slowest_where_outputs_differ() -> None:
    items = make_workload("W8", 600)
    static = run(items, STATIC_OFF)
    assert all(static.seconds > run(items, other).seconds for other in (PLANNED, FCFS_LRU))


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_workloads_come_from_their_seed_and_have_their_size(name: str) -> None:
    items, again = make_workload(name, 300, seed=4), make_workload(name, 300, seed=4)
    assert len(items) == 300
    for item, other in zip(items, again, strict=True):
        assert (item.prompt == other.prompt).all()
        assert item.num_output_tokens == other.num_output_tokens >= 1
    small = make_workload(name, 300, scale=0.1)
    assert sum(len(item.prompt) for item in small) < sum(len(item.prompt) for item in items) / 8


def test_the_share_that_can_be_saved_is_the_workloads() -> None:
    def share(name: str, count: int) -> float:
        prompts = Prompts.from_lists([item.prompt for item in make_workload(name, count)])
        tree = build_prefix_tree(prompts, page_size=1)
        return 1 - tree.unique_tokens / len(prompts.tokens)

    assert share("W1-16", 1600) == pytest.approx(2000 * 15 / 16 / 2200, abs=1e-3)
    assert share("W9", 500) == pytest.approx(0, abs=1e-3)
    assert share("W10", 3000) == pytest.approx(0.9125, abs=3e-3)


def test_the_floor_by_hand() -> None:
    items = [WorkItem(np.arange(100, dtype=np.int32), 11)]
    floor = workload_floor(items, H200, LLAMA)
    prefill = (
        2 * LLAMA.linear_parameters * 100
        + 2 * LLAMA.head_parameters
        + LLAMA.attention_flops_per_pair * 100 * 101 / 2
    )
    weights = 2 * (LLAMA.linear_parameters + LLAMA.head_parameters)
    assert floor.prefill_seconds == pytest.approx(prefill / H200.flops)
    assert floor.decode_linear_seconds == pytest.approx(10 * weights / H200.bandwidth)


def test_a_small_batch_with_a_near_deadline_goes_ahead() -> None:
    """10 requests that come while 20,000 others run, and must be through soon."""
    rng = random.Random(0)

    def sequences(count: int, first_id: int, deadline: float) -> list[Sequence]:
        made = []
        for i in range(count):
            if i % 16 == 0:
                prefix = [rng.randrange(1000) for _ in range(128)]
            prompt = np.array([*prefix, *(rng.randrange(1000) for _ in range(16))], np.int32)
            sampling = SamplingParams(max_tokens=rng.randint(8, 64))
            made.append(Sequence(first_id + i, 0, prompt, sampling, deadline=deadline))
        return made

    def seconds_to_the_end(intrude: bool) -> tuple[float, float]:
        """When the large batch is through, and when the small one."""
        config = SchedulerConfig(page_size=16, num_pages=4000, max_batch_tokens=1024)
        scheduler, device = Scheduler(config), SimulatedDevice(H200, LLAMA)
        scheduler.add(sequences(20_000, 0, deadline=86_400))
        intruders = sequences(10, 1_000_000, deadline=0) if intrude else []
        ended = {True: 0.0, False: 0.0}
        while (plan := scheduler.schedule()) is not None:
            if intruders and scheduler.num_steps == 200:
                came_at = device.seconds
                deadline = came_at + 10
                for sequence in intruders:
                    sequence.deadline = deadline
                scheduler.commit(device.run(plan, scheduler.sequences))
                scheduler.add(intruders)
                continue
            for sequence in scheduler.commit(device.run(plan, scheduler.sequences)):
                ended[sequence.request_id >= 1_000_000] = device.seconds
        if intrude:
            assert ended[True] < deadline
            assert ended[True] - came_at < 0.1 * ended[False]
        return ended[False], ended[True]

    alone, _ = seconds_to_the_end(intrude=False)
    disturbed, _ = seconds_to_the_end(intrude=True)
    assert disturbed < 1.05 * alone


def test_no_request_starves() -> None:
    """The last one in order gets its first token when its turn has come, not at the very end."""
    items = make_workload("W8", 400)
    result = run(items, PLANNED)
    assert result.longest_wait_seconds < result.seconds


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize("sharing", list(Sharing))
def test_every_setting_computes_what_it_promises(policy: Policy, sharing: Sharing) -> None:
    items = make_workload("W10", 200, scale=0.25)
    prompts = Prompts.from_lists([item.prompt for item in items])
    promised = 1 - build_prefix_tree(prompts, page_size=16).unique_tokens / len(prompts.tokens)
    for order in Order:
        result = run(items, Setting(policy, sharing, order))
        if sharing is Sharing.PLANNED:
            assert result.saved_share == pytest.approx(promised, abs=1e-9)
        if sharing is Sharing.OFF:
            assert result.saved_share == 0
