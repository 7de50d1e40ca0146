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
from trunkline.engine.graphs import MOST_ROWS, Graphs, can_record
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
    # Of the sampled rows, part by part: how many they are, and what they asked for.
    logprobs: tuple[tuple[int, LogprobTensors | None], ...]
    reads: ReadTensors | None
    arrived: Mark

    def result(self) -> StepResult:
        """See `RunningStep.result`."""
        self.arrived.wait()
        return StepResult(
            step=self.step,
            sequence=self.slots,
            token_ids=self.tokens.numpy().astype(np.int32),
            logprobs=tuple(
                of_row
                for num_rows, found in self.logprobs
                for of_row in ((None,) * num_rows if found is None else found.by_row())
            ),
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
        cuda_graph_rows: int = MOST_ROWS,
    ) -> None:
        """Allocate what steps need on the decoder's device.

        Args:
            decoder: on a GPU, or anywhere in Triton's interpreter.
            cache: on the same device.
            max_batch_tokens: rows of a step at most, and slots.
            lookahead: see `StepRunner`.
            cuda_graphs: record launches; they never are on a CPU.
            cuda_graph_rows: rows of a step at most whose launches are recorded.

        Raises:
            ValueError: the attention kernel does not take the model's heads or types, or
                `cuda_graph_rows` is less than 1 though launches are to be recorded.
        """
        if cuda_graphs and cuda_graph_rows < 1:
            raise ValueError(f"cuda_graph_rows is {cuda_graph_rows}; at least 1 is needed")
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
        most_rows = min(max_batch_tokens, cuda_graph_rows)
        self._graphs = Graphs(most_rows) if cuda_graphs and can_record(device) else None
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
        inputs = self._inputs.build(
            plan,
            sequences,
            self._last_tokens,
            num_rows,
            NO_ROWS if masks is None else masks.rows,
            # A graph has fixed shapes; which rows are wanted changes from step to step.
            every_row=num_rows <= self.recorded_rows,
        )
        spans = self._inputs.spans(plan)
        for work in self._works.values():
            work.load(spans)
        hidden = self._compute_hidden(inputs)
        slots = plan.entry_sequence[plan.entry_samples]
        tokens, logprobs = self._sample(hidden, inputs, masks)
        reads = None if inputs.reads is None else read_hidden(self._decoder, hidden, inputs.reads)
        return self._fetch(plan.step, slots, tokens, logprobs, reads)

    def run(self, plan: StepPlan, sequences: Mapping[int, Sequence]) -> StepResult:
        """Submit a step and wait for it."""
        return self.submit(plan, sequences).result()

    def _compute_hidden(self, inputs: GpuInputs) -> Tensor:
        """[num_padded_rows or num_wanted, hidden] what the output layer takes."""
        decoder_inputs = DecoderInputs(
            token_ids=inputs.token_ids,
            positions=inputs.positions,
            write_slots=inputs.write_slots,
            attention={
                window: ResidentAttention(work, self._tables.tensor)
                for window, work in self._works.items()
            },
            wanted_rows=inputs.wanted_rows,
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
    ) -> tuple[list[Tensor], list[tuple[int, LogprobTensors | None]]]:
        """The new tokens, [num_sampled] int64, which stay on the device for the next step too.

        Returns:
            (tokens, log-probabilities with the number of their rows) of each part.
        """
        tokens: list[Tensor] = []
        logprobs: list[tuple[int, LogprobTensors | None]] = []
        waited: Tensor | None = None
        for part in inputs.sampled:
            logits = self._decoder.logits(hidden.index_select(0, part.rows))
            if masks is not None and waited is None:
                # The device computes the logits meanwhile.
                waited = masks.wait().to(logits.device, non_blocking=True)
            has_mask = part.sampling.mask_of_row is not None
            of_part = waited[part.masks] if waited is not None and has_mask else None
            new = sample(logits, part.sampling, of_part)
            self._last_tokens.index_copy_(0, part.slots, new)
            tokens.append(new)
            found = None
            if part.logprobs is not None:
                found = find_logprobs(logits, new, part.logprobs, part.logprob_rows)
            logprobs.append((len(new), found))
            del logits  # those of the next part take the memory
        return tokens, logprobs

    def _fetch(
        self,
        step: int,
        slots: NDArray[np.int32],
        tokens: list[Tensor],
        logprobs: list[tuple[int, LogprobTensors | None]],
        reads: ReadTensors | None,
    ) -> GpuStep:
        """Begin to copy the results to the host."""
        on_host = torch.empty(0, dtype=torch.int64)
        if tokens:
            all_tokens = tokens[0] if len(tokens) == 1 else torch.cat(tokens)
            on_host = all_tokens.to("cpu", non_blocking=True)
        fetched = tuple(
            (num_rows, None if found is None else found.to_host()) for num_rows, found in logprobs
        )
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
