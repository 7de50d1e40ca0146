"""transformers' continuous batching (what `generate_batch` runs), with its prefix sharing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from peers.protocol import Answer, Job, Options, serve

PAGE_TOKENS = 256
# On a CPU its attention is one dense product of all the rows of a step with all of the cache, so a
# small cache and small steps make it fast: most of that product is masked out.
MAX_CONCURRENT = 16
MAX_BATCH_TOKENS = 256
NO_TOKEN = -1


class ContinuousAnswerer:
    """A manager for each run, so that no run finds another's prefixes in the cache."""

    def __init__(self, options: Options) -> None:
        torch.set_num_threads(options.threads)
        self.version = transformers.__version__
        self.details: Mapping[str, Any] = {}
        self._model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=getattr(torch, options.dtype), attn_implementation="sdpa"
        ).eval()
        config = self._model.config
        head_dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        token_bytes = (
            2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
        ) * self._model.dtype.itemsize
        self._max_blocks = max(options.kv_bytes // (PAGE_TOKENS * token_bytes), 1)
        self.run(Job([[1, 2, 3]] * 2, [2, 2]), {})

    def run(self, job: Job, request: Mapping[str, Any]) -> Answer:  # noqa: ARG002  # no options
        longest = max(job.output_lengths)
        generation = GenerationConfig(
            max_new_tokens=longest, do_sample=False, eos_token_id=NO_TOKEN, pad_token_id=0
        )
        longest_total = max(
            len(prompt) + length
            for prompt, length in zip(job.prompts, job.output_lengths, strict=True)
        )
        num_blocks = MAX_CONCURRENT * -(-longest_total // PAGE_TOKENS)
        batching = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=min(num_blocks, self._max_blocks),
            max_batch_tokens=MAX_BATCH_TOKENS,
        )
        # Requests that share a prefix arrive together: its best order.
        order = sorted(range(len(job.prompts)), key=lambda i: job.prompts[i], reverse=True)
        found: dict[str, list[int]] = {}
        with self._model.continuous_batching_context_manager(
            generation_config=generation, continuous_batching_config=batching
        ) as manager:
            started = time.perf_counter()
            for i in order:
                manager.add_request(
                    job.prompts[i], request_id=str(i), max_new_tokens=job.output_lengths[i]
                )
            while len(found) < len(order):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    if result.error is not None:
                        raise RuntimeError(result.error)
                    found[result.request_id] = list(result.generated_tokens)
                elif result is None and not manager.is_running():
                    raise RuntimeError("the generation thread ended before all were answered")
            seconds = time.perf_counter() - started
        return Answer(seconds, [found[str(i)] for i in range(len(order))])


if __name__ == "__main__":
    serve(ContinuousAnswerer)
