"""The page tables of all slots in the device's memory; a step sends only what has changed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class DevicePageTables:
    """A table on the device, and what the host knows of it."""

    def __init__(self, device: torch.device, num_slots: int, max_pages: int) -> None:
        """Allocate; the tables grow when a step needs more.

        Args:
            device: of the tables.
            num_slots: sequences that they are made for.
            max_pages: pages of a sequence, likewise.
        """
        self.tensor = torch.zeros(num_slots, max_pages, dtype=torch.int32, device=device)
        self._mirror = np.zeros((num_slots, max_pages), np.int32)
        # Counts how often the tables have moved.
        self.generation = 0

    def changes(
        self, slots: NDArray[np.int32], pages: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """What `apply` has to be given so that the tables of `slots` are `pages`.

        The host takes it for done.

        Args:
            slots: [n], all different.
            pages: [n, num_pages] page of each slot's pages, -1 unused: any will do.

        Returns:
            Positions in the flattened tables, and what they are set to; both [num_changes].
        """
        num_pages = pages.shape[1]
        self._reserve(int(slots.max()) + 1, num_pages)
        is_new = (pages != self._mirror[slots, :num_pages]) & (pages >= 0)
        entry, page = np.nonzero(is_new)
        values = pages[entry, page]
        self._mirror[slots[entry], page] = values
        return slots[entry].astype(np.int64) * self._mirror.shape[1] + page, values

    def apply(self, positions: Tensor, values: Tensor) -> None:
        """Set what `changes` has returned, which is on the device now."""
        if len(positions):
            self.tensor.view(-1).index_copy_(0, positions, values)

    def _reserve(self, num_slots: int, num_pages: int) -> None:
        old_slots, old_pages = self._mirror.shape
        if num_slots <= old_slots and num_pages <= old_pages:
            return
        shape = _at_least(old_slots, num_slots), _at_least(old_pages, num_pages)
        tensor, mirror = self.tensor.new_zeros(shape), np.zeros(shape, np.int32)
        tensor[:old_slots, :old_pages] = self.tensor
        mirror[:old_slots, :old_pages] = self._mirror
        self.tensor, self._mirror = tensor, mirror
        self.generation += 1


def _at_least(old: int, needed: int) -> int:
    """`old`, or twice that or more: growing is rare."""
    return old if needed <= old else max(needed, 2 * old)
