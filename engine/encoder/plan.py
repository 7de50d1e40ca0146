"""What people may want to know of a batch for an encoder while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from trunkline.engine.encoder.model import Encoder
from trunkline.engine.plan_summary import FIRST_SHARE_OF_FLOOR, LEARNING_RATE
from trunkline.engine.sequence import Sequence
from trunkline.engine.simulation.hardware import Hardware


class EncoderPlanSummariser:
    """Counts what identical inputs save, and learns from what batches really took."""

    def __init__(self, encoder: Encoder, hardware: Hardware) -> None:
        self._encoder = encoder
        self._hardware = hardware
        self._share_of_floor = FIRST_SHARE_OF_FLOOR

    def learn(self, floor_seconds: float, actual_seconds: float) -> None:
        """A batch whose floor was `floor_seconds` took `actual_seconds`, with nothing beside it."""
        reached = min(floor_seconds / max(actual_seconds, 1e-9), 1.0)
        self._share_of_floor += LEARNING_RATE * (reached - self._share_of_floor)

    def summarise(
        self,
        sequences: list[Sequence],
        expected_output: Callable[[Sequence], int],  # noqa: ARG002  # as every summariser
    ) -> dict[str, Any]:
        """The plan of one batch by itself, with the keys of `PlanSummariser.summarise`.

        Args:
            expected_output: not asked, for nothing is generated.

        Returns:
            An object for JSON.
        """
        started = time.perf_counter()
        lengths = {sequence.prompt.tobytes(): len(sequence.prompt) for sequence in sequences}
        unique = list(lengths.values())
        num_tokens = sum(len(sequence.prompt) for sequence in sequences)
        floor_seconds = sum(map(self._flops, unique)) / self._hardware.flops
        return {
            "planned_at": int(time.time()),
            "scheduler": "by_length",
            "prefix_sharing": "identical",
            "order": "length",
            "grouping": "none",
            "sequences": len(sequences),
            "prompt_tokens": num_tokens,
            "unique_prompt_tokens": sum(unique),
            "saved_share": 1 - sum(unique) / max(num_tokens, 1),
            "expected_output_tokens": 0,
            "shared_prefixes": 0,
            "groups": [],
            "predicted_seconds": floor_seconds / self._share_of_floor,
            "floor_seconds": floor_seconds,
            "plan_seconds": time.perf_counter() - started,
        }

    def _flops(self, num_tokens: int) -> float:
        """Of one input: each weight and each pair of tokens is a product and a sum."""
        encoder = self._encoder
        products = 2 * encoder.num_layer_parameters * num_tokens
        attention = 4 * encoder.num_layers * encoder.hidden_size * num_tokens**2
        return float(products + attention)
