"""Log-probabilities of sampled tokens, for the rows that ask for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trunkline.engine.step_plan import TokenLogprobs

# Rows whose log-probabilities over the vocabulary exist at once.
CHUNK_ROWS = 256


@dataclass(frozen=True)
class WantedLogprobs:
    """Which rows ask for log-probabilities, and for how many."""

    num_rows: int
    rows: NDArray[np.int64]  # [num_wanted]
    num_top: tuple[int, ...]  # [num_wanted] most likely tokens beside the sampled one

    @classmethod
    def of(cls, num_top_logprobs: tuple[int | None, ...]) -> WantedLogprobs | None:
        """What rows ask for; None when no row does.

        Args:
            num_top_logprobs: [num_rows] None: no log-probabilities.
        """
        asked = [(row, n) for row, n in enumerate(num_top_logprobs) if n is not None]
        if not asked:
            return None
        rows, num_top = zip(*asked, strict=True)
        return cls(len(num_top_logprobs), np.array(rows, np.int64), num_top)


@dataclass(frozen=True)
class LogprobTensors:
    """The figures, on the device or on their way from it."""

    wanted: WantedLogprobs
    sampled: Tensor  # [num_wanted]
    top_ids: Tensor  # [num_wanted, most]
    top_logprobs: Tensor  # [num_wanted, most] falling

    def to_host(self) -> LogprobTensors:
        """Copies in the host's memory, which are there when the device's queue has come to them."""
        tensors = (self.sampled, self.top_ids, self.top_logprobs)
        return LogprobTensors(self.wanted, *(t.to("cpu", non_blocking=True) for t in tensors))

    def by_row(self) -> tuple[TokenLogprobs | None, ...]:
        """[num_rows] None where none were asked for. The tensors are in the host's memory."""
        found: list[TokenLogprobs | None] = [None] * self.wanted.num_rows
        columns = (self.sampled.tolist(), self.top_ids.tolist(), self.top_logprobs.tolist())
        for row, num_top, sampled, ids, logprobs in zip(
            self.wanted.rows.tolist(), self.wanted.num_top, *columns, strict=True
        ):
            found[row] = TokenLogprobs(sampled, tuple(ids[:num_top]), tuple(logprobs[:num_top]))
        return tuple(found)


def find_logprobs(
    logits: Tensor, tokens: Tensor, wanted: WantedLogprobs, rows: Tensor
) -> LogprobTensors:
    """From the logits as the model gave them.

    Args:
        logits: [num_rows, vocab_size]
        tokens: [num_rows] the tokens that were sampled.
        wanted: by whom.
        rows: `wanted.rows` on the device.
    """
    num_top = min(max(wanted.num_top), logits.shape[1])
    parts = [_of_rows(logits, tokens, chunk, num_top) for chunk in torch.split(rows, CHUNK_ROWS)]
    sampled, ids, top = (torch.cat(column) for column in zip(*parts, strict=True))
    return LogprobTensors(wanted, sampled, ids, top)


def _of_rows(
    logits: Tensor, tokens: Tensor, rows: Tensor, num_top: int
) -> tuple[Tensor, Tensor, Tensor]:
    logprobs = logits.index_select(0, rows).float().log_softmax(-1)
    sampled = logprobs.gather(1, tokens.index_select(0, rows).unsqueeze(1)).squeeze(1)
    top = logprobs.topk(num_top, dim=-1)
    return sampled, top.indices, top.values
