"""The floors of the rows."""

from __future__ import annotations

import pytest
from harness.floor import bounds_of

from trunkline.engine.simulation.hardware import HARDWARE, MODEL_SHAPES
from trunkline.engine.simulation.workloads import WORKLOADS, make_workload

# Seconds of prefill and decode one after the other, worked out by hand for 6,400 requests of
# 2000/200/100 on an H200.
WORKED = {"W1-16": 58.4, "W1-64": 45.5, "W1-256": 42.3}


@pytest.mark.parametrize("name", WORKED)
def test_worked_example(name: str) -> None:
    # A sixteenth of the groups: every part of the floor is proportional to their number.
    count = 6400 // 16 if name != "W1-256" else 6400 // 5
    items = make_workload(name, count)
    bounds = bounds_of(items, HARDWARE["h200"], MODEL_SHAPES["llama-3.1-8b"])
    assert bounds.floor * 6400 / count == pytest.approx(WORKED[name], rel=0.05)
    assert 0 < bounds.lower <= bounds.floor


@pytest.mark.parametrize("name", WORKLOADS)
def test_overlapping_never_takes_longer(name: str) -> None:
    items = make_workload(name, 24, scale=0.1)
    bounds = bounds_of(items, HARDWARE["cpu"], MODEL_SHAPES["smollm2-135m"])
    assert bounds.lower > 0
    assert bounds.lower <= bounds.floor * 1.2
