"""What a step would take on paper hardware."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from trunkline.engine.sequence import Sequence
from trunkline.engine.simulation.hardware import Hardware, ModelShape
from trunkline.engine.step_plan import StepPlan, StepResult

# Rows, times query heads per KV head, that share one read of a span's keys.
TILE_ROWS = 128
SAMPLED_TOKEN = 1


@dataclass
class SimulatedDevice:
    """Runs steps by computing their cost. Every sampled token is the same."""

    hardware: Hardware
    shape: ModelShape
    seconds: float = field(default=0.0, init=False)
    busy_seconds: float = field(default=0.0, init=False)  # of the arithmetic units

    def run(self, plan: StepPlan, sequences: Mapping[int, Sequence]) -> StepResult:
        """Add the step's cost to the clock. The linear layers and attention do not overlap."""
        del sequences  # what is generated does not depend on them
        hardware, shape = self.hardware, self.shape
        num_sampled = int(plan.entry_samples.sum())
        linear_flops = 2.0 * shape.linear_parameters * plan.num_rows
        head_flops = 2.0 * shape.head_parameters * num_sampled
        weight_bytes = 2.0 * (shape.linear_parameters + shape.head_parameters * bool(num_sampled))
        pairs, keys_read = _attention_work(plan, shape.num_heads // shape.num_kv_heads)
        attention_flops = float(shape.attention_flops_per_pair) * pairs
        kv_bytes = float(shape.kv_bytes_per_token) * keys_read
        products = max(
            (linear_flops + head_flops) / hardware.flops, weight_bytes / hardware.bandwidth
        )
        attention = max(attention_flops / hardware.flops, kv_bytes / hardware.bandwidth)
        self.seconds += products + attention + hardware.step_seconds
        self.busy_seconds += (linear_flops + head_flops + attention_flops) / hardware.flops
        sampled = np.flatnonzero(plan.entry_samples)
        return StepResult(
            step=plan.step,
            sequence=plan.entry_sequence[sampled],
            token_ids=np.full(num_sampled, SAMPLED_TOKEN, np.int32),
            logprobs=(None,) * num_sampled,
        )


def _attention_work(plan: StepPlan, heads_per_kv_head: int) -> tuple[float, float]:
    """Query-key pairs, and keys read from memory, of one layer and KV head."""
    spans = plan.spans
    rows = (spans.row_end - spans.row_start).astype(np.float64)
    keys = (spans.kv_end - spans.kv_start).astype(np.float64)
    # In a causal span the last rows of the square do not see the keys behind them.
    hidden = np.where(spans.causal, rows * (rows - 1) / 2, 0.0)
    tiles = np.ceil(rows * heads_per_kv_head / TILE_ROWS)
    return float((rows * keys - hidden).sum()), float((tiles * keys).sum())
