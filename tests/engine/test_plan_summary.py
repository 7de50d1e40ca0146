"""What people see of a batch's plan."""

from __future__ import annotations

import numpy as np
import pytest

from trunkline.engine.plan_summary import FIRST_SHARE_OF_FLOOR, MAX_GROUPS, PlanSummariser
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.simulation.hardware import HARDWARE, MODEL_SHAPES


def summariser() -> PlanSummariser:
    config = SchedulerConfig(page_size=16, num_pages=1000, max_batch_tokens=64)
    return PlanSummariser(config, HARDWARE["h200"], MODEL_SHAPES["llama-3.1-8b"])


def sequences(num_groups: int) -> list[Sequence]:
    made = []
    for group in range(num_groups):
        for i in range(4):
            prompt = np.array([group] * 160 + [1000 + i] * 16, np.int32)
            made.append(Sequence(len(made), 0, prompt, SamplingParams(max_tokens=10)))
    return made


def test_the_numbers_add_up() -> None:
    plan = summariser().summarise(sequences(3), lambda s: s.sampling.max_tokens)
    assert plan["sequences"] == 12
    assert plan["prompt_tokens"] == 12 * 176
    assert plan["unique_prompt_tokens"] == 3 * 160 + 12 * 16
    assert plan["saved_share"] == pytest.approx(1 - (3 * 160 + 12 * 16) / (12 * 176))
    assert plan["expected_output_tokens"] == 120
    assert [(g["requests"], g["prefix_tokens"]) for g in plan["groups"]] == [(4, 160)] * 3
    assert sorted(g["first_in_order"] for g in plan["groups"]) == [0, 4, 8]
    floor = plan["floor_seconds"]
    assert plan["predicted_seconds"] == pytest.approx(floor / FIRST_SHARE_OF_FLOOR)


def test_only_the_largest_groups_are_listed() -> None:
    plan = summariser().summarise(sequences(MAX_GROUPS + 20), lambda _: 1)
    assert plan["shared_prefixes"] == MAX_GROUPS + 20
    assert len(plan["groups"]) == MAX_GROUPS


def test_predictions_follow_what_happened() -> None:
    made = summariser()
    before = made.summarise(sequences(2), lambda _: 5)
    actual = before["predicted_seconds"] * 4
    for _ in range(12):
        made.learn(before["floor_seconds"], actual)
    after = made.summarise(sequences(2), lambda _: 5)
    assert after["predicted_seconds"] == pytest.approx(actual, rel=0.01)
