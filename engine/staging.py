"""One copy to the device for all the arrays of a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.int64] | NDArray[np.int32] | NDArray[np.float32]

# Where an array begins on the device: at a multiple of the widest access.
ALIGNMENT = 16
NUM_TURNS = 2

_TORCH_DTYPES = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
}


class Staging:
    """Device memory for one step's arrays, and host memory that they are copied from.

    The host fills its memory for the next step while the device may still copy from that of the
    step before. The device's memory is one: it is overwritten in the order of the stream, when the
    step before is through.
    """

    def __init__(self, device: torch.device, num_bytes: int) -> None:
        self._device = device
        # Counts how often the device's memory has moved.
        self.generation = 0
        self._turn = 0
        self._allocate(num_bytes)

    def send(self, arrays: Sequence[Array]) -> list[Tensor]:
        """Copy `arrays` to the device; valid until the next call. The copy is not waited for.

        They lie one after the other, so the first ones are at the same address in every step in
        which those before them have the same sizes.
        """
        starts, end = [], 0
        for array in arrays:
            starts.append(end)
            end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        if end > len(self._memory):
            self._allocate(1 << (end - 1).bit_length())
            self.generation += 1
        self._turn = (self._turn + 1) % NUM_TURNS
        host, sent = self._host[self._turn], self._sent[self._turn]
        sent.wait()
        filled = host.numpy()
        for array, start in zip(arrays, starts, strict=True):
            filled[start : start + array.nbytes] = array.view(np.uint8)
        self._memory[:end].copy_(host[:end], non_blocking=True)
        sent.record()
        return [
            self._memory[start : start + array.nbytes].view(_TORCH_DTYPES[array.dtype])
            for array, start in zip(arrays, starts, strict=True)
        ]

    def _allocate(self, num_bytes: int) -> None:
        is_gpu = self._device.type != "cpu"
        self._memory = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        self._host = [
            torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_gpu) for _ in range(NUM_TURNS)
        ]
        self._sent = [Mark(self._device) for _ in range(NUM_TURNS)]


class Mark:
    """A place in the device's queue that the host can wait for. On a CPU there is no queue."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's omission

    def record(self) -> None:
        """Put it behind all that has been queued."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Return when the device has come to it, or at once if it was never recorded."""
        if self._event is not None:
            self._event.synchronize()
