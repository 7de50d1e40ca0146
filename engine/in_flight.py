"""Steps that have been planned and whose results have not come.

Each sequence that they sample has a *pending* token: its place is known, what it is only the device
knows. The next step may be planned on it.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.slots import SlotTable
from trunkline.engine.step_plan import PENDING_TOKEN, StepResult


class StepsInFlight:
    """A queue of steps, and the pending tokens of the sequences in their slots."""

    def __init__(self, table: SlotTable) -> None:
        self._table = table
        self._tenancies: deque[NDArray[np.int64]] = deque()  # of the slots that a step samples

    def __len__(self) -> int:
        return len(self._tenancies)

    def push(self, slots: NDArray[np.int64]) -> None:
        """A step that samples `slots` is on its way: each of them has one more token."""
        table = self._table
        table.known[slots] += 1
        table.num_pending[slots] += 1
        table.last_token[slots] = PENDING_TOKEN
        self._tenancies.append(table.tenancy[slots])

    def is_received(self, result: StepResult) -> NDArray[np.bool_]:
        """Whether each token of the oldest step has a receiver, [num_sampled].

        The sequence of one that has none has ended since the step was planned.
        """
        is_received: NDArray[np.bool_] = self._table.tenancy[result.sequence] == self._tenancies[0]
        return is_received

    def pop(self, result: StepResult) -> NDArray[np.bool_]:
        """The oldest step has the result `result`; its tokens are pending no longer.

        Returns:
            See `is_received`.
        """
        table, is_received = self._table, self.is_received(result)
        self._tenancies.popleft()
        slots = result.sequence[is_received]
        num_pending = table.num_pending[slots] - 1
        table.num_pending[slots] = num_pending
        table.last_token[slots] = np.where(
            num_pending > 0, PENDING_TOKEN, result.token_ids[is_received]
        )
        return is_received
