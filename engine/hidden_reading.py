"""Computes what is read of a step's rows: log-probabilities of given tokens, sums of states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trunkline.engine.logprobs import CHUNK_ROWS
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.step_plan import ReadResult, RowReads


@dataclass(frozen=True)
class ReadTensors:
    """The figures, on the device or on their way from it."""

    logprobs: Tensor  # [num_reads] float32
    top_ids: Tensor  # [num_reads, num_top] int64
    top_logprobs: Tensor  # [num_reads, num_top] float32
    pooled: Tensor  # [num_pools, hidden] float32

    def to_host(self) -> ReadTensors:
        """Copies in the host's memory, which are there when the device's queue has come to them."""
        tensors = (self.logprobs, self.top_ids, self.top_logprobs, self.pooled)
        return ReadTensors(*(tensor.to("cpu", non_blocking=True) for tensor in tensors))

    def result(self) -> ReadResult:
        """As arrays. The tensors are in the host's memory."""
        return ReadResult(
            logprobs=self.logprobs.numpy(),
            top_ids=self.top_ids.to(torch.int32).numpy(),
            top_logprobs=self.top_logprobs.numpy(),
            pooled=self.pooled.numpy(),
        )


@dataclass(frozen=True)
class ReadInputs:
    """What is read of a step, and its arrays where the hidden states are."""

    reads: RowReads  # its rows are those of the hidden states
    rows: Tensor  # [num_reads] int64, `reads.row` on the device
    targets: Tensor  # [num_reads] int64, `reads.target` on the device

    @classmethod
    def of(cls, reads: RowReads, device: torch.device) -> ReadInputs:
        """Copy the arrays to the device. On a GPU the host waits for it."""
        arrays = (torch.from_numpy(array) for array in (reads.row, reads.target))
        return cls(reads, *(array.to(device) for array in arrays))


def read_hidden(decoder: Decoder, hidden: Tensor, inputs: ReadInputs) -> ReadTensors:
    """Read what `inputs` asks for. Nothing is waited for.

    Args:
        decoder: whose output layer is used, for `CHUNK_ROWS` rows at a time.
        hidden: [num_rows, hidden] what the output layer takes.
        inputs: at least one read or pool.
    """
    reads, rows, targets = inputs.reads, inputs.rows, inputs.targets
    device = hidden.device
    num_top = min(reads.num_top, decoder.config.vocab_size)
    logprobs = torch.empty(len(reads.row), dtype=torch.float32, device=device)
    top_ids = torch.empty(len(reads.row), num_top, dtype=torch.int64, device=device)
    top_logprobs = torch.empty(len(reads.row), num_top, dtype=torch.float32, device=device)
    for start in range(0, len(reads.row), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        logits = decoder.logits(hidden.index_select(0, rows[chunk]))
        of_vocabulary = logits.float().log_softmax(-1)
        logprobs[chunk] = of_vocabulary.gather(1, targets[chunk].unsqueeze(1)).squeeze(1)
        if num_top:
            top = of_vocabulary.topk(num_top, dim=-1)
            top_ids[chunk], top_logprobs[chunk] = top.indices, top.values
    return ReadTensors(logprobs, top_ids, top_logprobs, _pooled(hidden, reads))


def _pooled(hidden: Tensor, reads: RowReads) -> Tensor:
    """[num_pools, hidden] sums over the ranges of rows, in float32."""
    sums = [
        hidden[start:end].float().sum(0)
        for start, end in zip(reads.pool_start.tolist(), reads.pool_end.tolist(), strict=True)
    ]
    return torch.stack(sums) if sums else hidden.new_empty(0, hidden.shape[1], dtype=torch.float32)
