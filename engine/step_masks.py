"""What the sampler gets of grammars: masks that another thread is making."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class StepMasks:
    """The masks of one step, on their way."""

    rows: NDArray[np.int64]  # [num_masks] which of the step's sampled rows each is for
    _masks: Future[Tensor]

    def wait(self) -> Tensor:
        """[num_masks, num_words] int32 in the host's memory; see `reference.apply_token_masks`."""
        return self._masks.result()
