"""The least time that a workload can take on a device, whatever the engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trunkline.engine.prefix_tree import PrefixTree, Prompts, build_prefix_tree
from trunkline.engine.simulation.hardware import Hardware, ModelShape
from trunkline.engine.simulation.workloads import WorkItem


@dataclass(frozen=True)
class Floor:
    """Seconds."""

    prefill_seconds: float  # arithmetic of every prompt token that is computed once
    decode_linear_seconds: float
    decode_attention_seconds: float

    @property
    def seconds(self) -> float:
        """The three one after the other."""
        return self.prefill_seconds + self.decode_linear_seconds + self.decode_attention_seconds


def workload_floor(items: list[WorkItem], hardware: Hardware, shape: ModelShape) -> Floor:
    """The floor with every shared prefix computed once, and read once per step when decoding."""
    prompts = Prompts.from_lists([item.prompt for item in items])
    outputs = np.array([item.num_output_tokens for item in items], np.float64)
    tree = build_prefix_tree(prompts, page_size=1)
    own = (tree.lengths - tree.shared_lengths).astype(np.float64)
    unique = float(tree.unique_tokens)
    pairs = _causal_pairs(tree)
    prefill_flops = (
        2.0 * shape.linear_parameters * unique
        + 2.0 * shape.head_parameters * len(items)
        + shape.attention_flops_per_pair * pairs
    )
    num_decode = float((outputs - 1).sum())
    weights = 2.0 * (shape.linear_parameters + shape.head_parameters)
    # The largest batch that memory holds, shared prefixes left out.
    kv_room = hardware.memory_bytes * 0.9 - shape.weight_bytes
    largest = max(kv_room / (shape.kv_bytes_per_token * float((own + outputs / 2).mean())), 1.0)
    num_steps = max(float(outputs.max()) - 1, num_decode / largest)
    decode_linear = max(
        weights * num_decode / hardware.flops, weights * num_steps / hardware.bandwidth
    )
    # Own context of each decode token; shared prefixes, read by many at once, come nearly free.
    context = own * (outputs - 1) + outputs * (outputs - 1) / 2
    decode_attention = shape.kv_bytes_per_token * float(context.sum()) / hardware.bandwidth
    return Floor(prefill_flops / hardware.flops, decode_linear, decode_attention)


def _causal_pairs(tree: PrefixTree) -> float:
    """Query-key pairs of the prefill when every tree node is computed once."""

    def pairs(start: np.ndarray, end: np.ndarray) -> float:
        first, last = start.astype(np.float64), end.astype(np.float64)
        return float(((last * (last + 1) - first * (first + 1)) / 2).sum())

    return pairs(tree.start, tree.end) + pairs(tree.shared_lengths, tree.lengths)
