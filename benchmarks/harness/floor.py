"""The least time that a workload can take on a machine, for the rows of results."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trunkline.engine.prefix_tree import Prompts, build_prefix_tree
from trunkline.engine.simulation.floor import workload_floor
from trunkline.engine.simulation.hardware import Hardware, ModelShape
from trunkline.engine.simulation.workloads import WorkItem


@dataclass(frozen=True)
class Bounds:
    """Seconds."""

    floor: float  # prefill, decode's products and decode's attention one after the other (LB2)
    lower: float  # all arithmetic at the same time as all memory traffic (LB)


def bounds_of(items: list[WorkItem], hardware: Hardware, shape: ModelShape) -> Bounds:
    """Both bounds, with every shared prefix computed once.

    Args:
        items: the workload.
        hardware: its measured rates, and the bytes that weights and KV cache have together.
        shape: of the model.
    """
    floor = workload_floor(items, hardware, shape)
    tree = build_prefix_tree(Prompts.from_lists([item.prompt for item in items]), page_size=1)
    outputs = np.array([item.num_output_tokens for item in items], np.float64)
    lengths, shared = (array.astype(np.float64) for array in (tree.lengths, tree.shared_lengths))
    num_decode = float((outputs - 1).sum())
    # Every decode token attends to its whole context, however little of it is read.
    decode_pairs = float((lengths * (outputs - 1) + outputs * (outputs - 1) / 2).sum())
    arithmetic = (
        floor.prefill_seconds
        + (
            2.0 * (shape.linear_parameters + shape.head_parameters) * num_decode
            + shape.attention_flops_per_pair * decode_pairs
        )
        / hardware.flops
    )
    own = lengths - shared
    largest = _largest_batch(hardware, shape, float((own + outputs / 2).mean()))
    num_steps = max(float(outputs.max()), num_decode / largest)
    weights = 2.0 * (shape.linear_parameters + shape.head_parameters)
    memory = weights * num_steps / hardware.bandwidth + floor.decode_attention_seconds
    return Bounds(floor=floor.seconds, lower=max(arithmetic, memory))


def _largest_batch(hardware: Hardware, shape: ModelShape, tokens_per_request: float) -> float:
    """Requests whose own KV fits beside the weights."""
    room = hardware.memory_bytes * 0.9 - shape.weight_bytes
    return max(room / (shape.kv_bytes_per_token * tokens_per_request), 1.0)
