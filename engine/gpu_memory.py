"""What a GPU's memory leaves for the KV cache: the rest after the largest step that can come."""

from __future__ import annotations

import numpy as np
import torch

from trunkline.engine.gpu_inputs import NO_SLOT
from trunkline.engine.gpu_runner import GpuRunner
from trunkline.engine.kv_cache import allocate_kv_cache
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.step_plan import AttentionSpans, StepPlan

# Of the device's memory, what the process takes. The rest is for graphs and for fragmentation.
MEMORY_SHARE = 0.92

# All that takes memory when a token is sampled.
_DEAREST = SamplingParams(
    max_tokens=1, temperature=1.0, top_p=0.9, logit_bias=((0, 1.0),), num_top_logprobs=20
)


def measure_kv_budget(
    decoder: Decoder, kv_dtype: torch.dtype, page_size: int, max_batch_tokens: int
) -> int:
    """Bytes for the KV cache on the decoder's GPU; 0 when nothing is left.

    Runs one step of `max_batch_tokens` rows, which also compiles the kernels.
    """
    device = decoder.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    cache = allocate_kv_cache(decoder.config, kv_dtype, device, 1, page_size)
    runner = GpuRunner(decoder, cache, max_batch_tokens=max_batch_tokens, cuda_graphs=False)
    run_largest_step(runner, max_batch_tokens)
    peak = torch.cuda.max_memory_allocated(device)
    free, total = torch.cuda.mem_get_info(device)
    taken_elsewhere = total - free - torch.cuda.memory_reserved(device)
    del runner, cache
    torch.cuda.empty_cache()
    return max(int(total * MEMORY_SHARE) - peak - taken_elsewhere, 0)


def warm_up(runner: GpuRunner) -> None:
    """Compile the kernels, and record the largest graph, whose memory the others share."""
    for _ in range(2):
        run_largest_step(runner, max(runner.recorded_rows, 1))


def run_largest_step(runner: GpuRunner, num_rows: int) -> None:
    """Run a step of `num_rows` sequences with one token each, and sample all; no KV is written."""
    rows = np.arange(num_rows, dtype=np.int32)
    ones, zeros = np.ones(num_rows, np.int32), np.zeros(num_rows, np.int32)
    plan = StepPlan(
        step=0,
        entry_start=zeros,
        entry_length=ones,
        entry_sequence=rows,
        entry_samples=np.ones(num_rows, np.bool_),
        token_ids=zeros,
        positions=zeros,
        page_tables=zeros.reshape(-1, 1),
        write_slots=np.full(num_rows, NO_SLOT, np.int64),
        spans=AttentionSpans(
            row_start=rows,
            row_end=rows + 1,
            entry=rows,
            kv_start=zeros,
            kv_end=ones,
            causal=np.ones(num_rows, np.bool_),
        ),
    )
    sequence = Sequence(0, 0, np.zeros(1, np.int32), _DEAREST)
    runner.run(plan, dict.fromkeys(range(num_rows), sequence))
