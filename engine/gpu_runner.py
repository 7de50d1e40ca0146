"""Runs steps on a GPU, beside the host: nothing is waited for but the tokens of a step.

All that a step's launches read lies at addresses that stay, so that they can be recorded in CUDA
graphs. Tokens stay on the device for the steps after; the host gets a copy of them when it asks.
The same code runs on a CPU in Triton's interpreter, without graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trunkline.engine.device_page_tables import DevicePageTables
from trunkline.engine.gpu_inputs import GpuInputs, InputBuilder
from trunkline.engine.graphs import MOST_ROWS, Graphs
from trunkline.engine.hidden_reading import ReadTensors, read_hidden
from trunkline.engine.kv_cache import KVCache
from trunkline.engine.logprobs import LogprobTensors, find_logprobs
from trunkline.engine.model.decoder import Decoder, DecoderInputs
from trunkline.engine.sampler import NO_ROWS, sample
from trunkline.engine.sequence import Sequence
from trunkline.engine.staging import Mark
from trunkline.engine.step_masks import StepMasks
from trunkline.engine.step_plan import StepPlan, StepResult
from trunkline.kernels.dispatch import ResidentAttention
from trunkline.kernels.gpu.device_work import DeviceWork

# The page tables' first width; they grow with the longest sequence.
FIRST_TABLE_TOKENS = 4096


@dataclass(frozen=True)
class GpuStep:
    """A step that the device computes, or has computed."""

    step: int
    slots: NDArray[np.int32]  # [num_sampled]
    tokens: Tensor  # [num_sampled] int64, in the host's memory after `arrived`
    logprobs: LogprobTensors | None
    reads: ReadTensors | None
    arrived: Mark

    def result(self) -> StepResult:
        """See `RunningStep.result`."""
        self.arrived.wait()
        return StepResult(
            step=self.step,
            sequence=self.slots,
            token_ids=self.tokens.numpy().astype(np.int32),
            logprobs=(None,) * len(self.slots) if self.logprobs is None else self.logprobs.by_row(),
            reads=None if self.reads is None else self.reads.result(),
        )


class GpuRunner:
    """Owns the decoder, the KV cache and all that a step needs on the device."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        *,
        max_batch_tokens: int,
        lookahead: int = 1,
        cuda_graphs: bool = True,
    ) -> None:
        """Allocate what steps need on the decoder's device.

        Args:
            decoder: on a GPU, or anywhere in Triton's interpreter.
            cache: on the same device.
            max_batch_tokens: rows of a step at most, and slots.
            lookahead: see `StepRunner`.
            cuda_graphs: record launches; they never are on a CPU.

        Raises:
            ValueError: the attention kernel does not take the model's heads or types.
        """
        self.lookahead = lookahead
        config, device = decoder.config, decoder.device
        self._decoder = decoder
        self._cache = cache
        max_pages = min(-(-FIRST_TABLE_TOKENS // cache.page_size), cache.num_pages)
        num_slots = min(max_batch_tokens, cache.num_pages)
        self._tables = DevicePageTables(device, num_slots, max_pages)
        self._inputs = InputBuilder(config, cache.page_size, self._tables)
        self._works = {
            window: DeviceWork(
                device,
                config.num_heads,
                config.num_kv_heads,
                config.head_dim,
                max_rows=max_batch_tokens,
                window=window,
                dtype=decoder.dtype,
                kv_dtype=cache.keys[0].dtype,
            )
            for window in set(config.windows)
        }
        # [num_slots] the token that each slot sampled last.
        self._last_tokens = torch.zeros(num_slots, dtype=torch.int64, device=device)
        most_rows = min(max_batch_tokens, MOST_ROWS)
        self._graphs = Graphs(most_rows) if cuda_graphs and device.type == "cuda" else None
        # Steps of up to so many rows are recorded.
        self.recorded_rows = most_rows if self._graphs is not None else 0
        # What graphs put out: hidden states of all rows.
        self._hidden = torch.empty(
            self.recorded_rows, config.hidden_size, dtype=decoder.dtype, device=device
        )
        self._generation = self._current_generation

    @torch.inference_mode()
    def submit(
        self, plan: StepPlan, sequences: Mapping[int, Sequence], masks: StepMasks | None = None
    ) -> GpuStep:
        """See `StepRunner.submit`."""
        self._reserve_slots(int(plan.entry_sequence.max()) + 1)
        num_rows = plan.num_rows if self._graphs is None else self._graphs.padded(plan.num_rows)
        masked_rows = NO_ROWS if masks is None else masks.rows
        inputs = self._inputs.build(plan, sequences, self._last_tokens, num_rows, masked_rows)
        spans = self._inputs.spans(plan)
        for work in self._works.values():
            work.load(spans)
        hidden = self._compute_hidden(inputs)
        slots = plan.entry_sequence[plan.entry_samples]
        tokens, logprobs = self._sample(hidden, inputs, masks) if len(slots) else (None, None)
        reads = None if plan.reads is None else read_hidden(self._decoder, hidden, plan.reads)
        return self._fetch(plan.step, slots, tokens, logprobs, reads)

    def run(self, plan: StepPlan, sequences: Mapping[int, Sequence]) -> StepResult:
        """Submit a step and wait for it."""
        return self.submit(plan, sequences).result()

    def _compute_hidden(self, inputs: GpuInputs) -> Tensor:
        """[num_padded_rows, hidden] what the output layer takes."""
        decoder_inputs = DecoderInputs(
            token_ids=inputs.token_ids,
            positions=inputs.positions,
            write_slots=inputs.write_slots,
            attention={
                window: ResidentAttention(work, self._tables.tensor)
                for window, work in self._works.items()
            },
            wanted_rows=None,
        )
        num_rows = len(inputs.token_ids)
        if self._graphs is None or num_rows > self.recorded_rows:
            return self._decoder.hidden(decoder_inputs, self._cache)
        if self._generation != self._current_generation:
            self._graphs.drop()
            self._generation = self._current_generation
        out = self._hidden[:num_rows]
        self._graphs.run(
            num_rows, lambda: out.copy_(self._decoder.hidden(decoder_inputs, self._cache))
        )
        return out

    def _sample(
        self, hidden: Tensor, inputs: GpuInputs, masks: StepMasks | None
    ) -> tuple[Tensor, LogprobTensors | None]:
        """The new tokens, [num_sampled] int64, which stay on the device for the next step too."""
        logits = self._decoder.logits(hidden.index_select(0, inputs.sampled_rows))
        # The device computes the logits meanwhile.
        waited = None if masks is None else masks.wait().to(logits.device, non_blocking=True)
        tokens = sample(logits, inputs.sampling, waited)
        self._last_tokens.index_copy_(0, inputs.sampled_slots, tokens)
        if inputs.logprobs is None:
            return tokens, None
        return tokens, find_logprobs(logits, tokens, inputs.logprobs, inputs.logprob_rows)

    def _fetch(
        self,
        step: int,
        slots: NDArray[np.int32],
        tokens: Tensor | None,
        logprobs: LogprobTensors | None,
        reads: ReadTensors | None,
    ) -> GpuStep:
        """Begin to copy the results to the host."""
        on_host = torch.empty(0, dtype=torch.int64)
        if tokens is not None:
            on_host = tokens.to("cpu", non_blocking=True)
        fetched = None if logprobs is None else logprobs.to_host()
        read = None if reads is None else reads.to_host()
        arrived = Mark(self._decoder.device)
        arrived.record()
        return GpuStep(step, slots, on_host, fetched, read, arrived)

    @property
    def _current_generation(self) -> int:
        return self._inputs.generation + sum(work.generation for work in self._works.values())

    def _reserve_slots(self, num_slots: int) -> None:
        old = len(self._last_tokens)
        if num_slots > old:
            grown = self._last_tokens.new_zeros(max(num_slots, 2 * old))
            grown[:old] = self._last_tokens
            self._last_tokens = grown
