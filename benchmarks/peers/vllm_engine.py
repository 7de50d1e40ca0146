"""What vLLM's two peers share. Runs in vLLM's own environment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import vllm  # type: ignore[import-not-found]  # only in its own environment
from vllm import LLM, SamplingParams

from peers.protocol import Answer, Job, Options

WARM_UP_TOKENS = 64


class VllmAnswerer:
    """vLLM's offline engine."""

    def __init__(self, options: Options, engine_arguments: Mapping[str, Any]) -> None:
        self.version = vllm.__version__
        self.details: Mapping[str, Any] = {}
        self._llm = LLM(
            model=str(options.model),
            dtype=options.dtype,
            load_format="dummy" if options.is_dummy else "auto",
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            disable_log_stats=True,
            **engine_arguments,
        )
        prompts = [list(range(first, first + WARM_UP_TOKENS)) for first in range(8)]
        self._generate(Job(prompts, [8] * len(prompts)))

    def run(self, job: Job, request: Mapping[str, Any]) -> Answer:  # noqa: ARG002  # no options
        # What an earlier run left in the cache would be shared for nothing.
        self._llm.reset_prefix_cache()
        started = time.perf_counter()
        outputs = self._generate(job)
        return Answer(time.perf_counter() - started, outputs)

    def _generate(self, job: Job) -> list[list[int]]:
        order = sorted(range(len(job.prompts)), key=lambda i: job.prompts[i])
        sampling = [
            SamplingParams(
                temperature=0.0,
                max_tokens=job.output_lengths[i],
                ignore_eos=True,
                detokenize=False,
            )
            for i in order
        ]
        prompts = [{"prompt_token_ids": job.prompts[i]} for i in order]
        done = self._llm.generate(prompts, sampling, use_tqdm=False)
        outputs: list[list[int]] = [[]] * len(order)
        for i, answered in zip(order, done, strict=True):
            outputs[i] = list(answered.outputs[0].token_ids)
        return outputs
