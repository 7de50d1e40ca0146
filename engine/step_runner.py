"""What the engine asks of whatever computes its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from trunkline.engine.sequence import Sequence
from trunkline.engine.step_masks import StepMasks
from trunkline.engine.step_plan import StepPlan, StepResult


class RunningStep(Protocol):
    """A step that was handed to a device."""

    def result(self) -> StepResult:
        """Wait for what it sampled."""


class StepRunner(Protocol):
    """Computes steps one after the other, in the order in which they are submitted."""

    @property
    def lookahead(self) -> int:
        """Steps that it is worth to have in flight while another one is planned."""

    def submit(
        self, plan: StepPlan, sequences: Mapping[int, Sequence], masks: StepMasks | None = None
    ) -> RunningStep:
        """Begin to compute every row of `plan`, and to sample where it says so.

        Args:
            plan: the step. K and V of all positions before its entries are in the cache, or are
                written by the steps before it.
            sequences: by slot; read before this returns, not changed. The output of one with a
                pending token lacks that.
            masks: of the sampled rows that follow a grammar; waited for when the logits are on
                their way. None: there are no such rows.
        """
