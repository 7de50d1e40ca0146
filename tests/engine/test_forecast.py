"""Memory to come, against a simulation of it."""

from __future__ import annotations

import numpy as np

from trunkline.engine.forecast import peak_kv_tokens


def test_the_forecast_is_the_largest_memory_of_a_simulated_run() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        n = int(rng.integers(1, 8))
        current = rng.integers(1, 30, n)
        remaining = rng.integers(0, 12, n)
        steps = range(int(remaining.max()) + 1)
        peak = max(int((current + t)[remaining >= t].sum()) for t in steps)
        assert peak_kv_tokens(current, remaining) == peak
