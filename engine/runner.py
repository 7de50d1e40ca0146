"""Runs steps with PyTorch on the host: the plan's rows through the decoder, the tokens back."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trunkline.engine.batch_inputs import build_inputs
from trunkline.engine.hidden_reading import ReadInputs, read_hidden
from trunkline.engine.kv_cache import KVCache
from trunkline.engine.logprobs import WantedLogprobs, find_logprobs
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.sampler import NO_ROWS, sample
from trunkline.engine.sequence import Sequence
from trunkline.engine.step_masks import StepMasks
from trunkline.engine.step_plan import StepPlan, StepResult, TokenLogprobs

# glibc's mallopt parameters.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Runner:
    """Owns the decoder, the KV cache and the tokens that have not reached the host yet.

    A step is through when `submit` returns. With a lookahead the engine plans ahead nevertheless,
    as it does with a device that works beside the host.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, lookahead: int = 0) -> None:
        self.lookahead = lookahead
        self._decoder = decoder
        self._cache = cache
        # [num_slots] the token that each slot sampled last.
        self._last_tokens = torch.zeros(64, dtype=torch.int64, device=decoder.device)

    def submit(
        self, plan: StepPlan, sequences: Mapping[int, Sequence], masks: StepMasks | None = None
    ) -> DoneStep:
        """See `StepRunner.submit`."""
        return DoneStep(self.run(plan, sequences, masks))

    @torch.inference_mode()
    def run(
        self, plan: StepPlan, sequences: Mapping[int, Sequence], masks: StepMasks | None = None
    ) -> StepResult:
        """Compute every row of `plan` and sample where it says so.

        Args:
            plan: the step. K and V of all positions before its entries are in the cache.
            sequences: by slot; their outputs are read, not changed.
            masks: of the sampled rows that follow a grammar.
        """
        self._reserve_slots(int(plan.entry_sequence.max()) + 1)
        inputs = build_inputs(
            plan,
            sequences,
            self._decoder.config,
            self._cache.page_size,
            self._last_tokens,
            NO_ROWS if masks is None else masks.rows,
        )
        hidden = self._decoder.hidden(inputs.decoder, self._cache)
        reads = None
        if plan.reads is not None:
            reads = read_hidden(self._decoder, hidden, ReadInputs.of(plan.reads, hidden.device))
        if inputs.sampled_rows is not None:
            hidden = hidden.index_select(0, inputs.sampled_rows)
        logits = self._decoder.logits(hidden)
        tokens = sample(
            logits, inputs.sampling, None if masks is None else masks.wait().to(logits.device)
        )
        self._remember(inputs.sample_slots.tolist(), tokens)
        return StepResult(
            step=plan.step,
            sequence=inputs.sample_slots,
            token_ids=tokens.to("cpu", torch.int32).numpy(),
            logprobs=self._logprobs(logits, tokens, inputs.sampling.num_top_logprobs),
            reads=None if reads is None else reads.to_host().result(),
        )

    def _logprobs(
        self, logits: Tensor, tokens: Tensor, num_top_logprobs: tuple[int | None, ...]
    ) -> tuple[TokenLogprobs | None, ...]:
        wanted = WantedLogprobs.of(num_top_logprobs)
        if wanted is None:
            return (None,) * len(num_top_logprobs)
        rows = torch.from_numpy(wanted.rows).to(logits.device)
        return find_logprobs(logits, tokens, wanted, rows).to_host().by_row()

    def _remember(self, slots: list[int], tokens: Tensor) -> None:
        self._last_tokens[torch.tensor(slots, dtype=torch.int64, device=tokens.device)] = tokens

    def _reserve_slots(self, num_slots: int) -> None:
        old = len(self._last_tokens)
        if num_slots > old:
            grown = self._last_tokens.new_zeros(max(num_slots, 2 * old))
            grown[:old] = self._last_tokens
            self._last_tokens = grown


@dataclass(frozen=True)
class DoneStep:
    """A step that has its result."""

    done: StepResult

    def result(self) -> StepResult:
        return self.done


def configure_host(num_threads: int) -> None:
    """Settings of the whole process, made once before the first step.

    Args:
        num_threads: CPU threads for products; as many as there are physical cores is best.
    """
    torch.set_num_threads(num_threads)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let the allocator keep large freed blocks instead of giving them back to the system.

    A step allocates activations of many megabytes again and again. With glibc's defaults each is
    mapped, faulted in page by page and unmapped: several times the cost of the operation that
    fills it. Another C library has no `mallopt`, and is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
