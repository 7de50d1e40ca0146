"""transformers' `generate` over padded batches: request-level batching without a shared cache."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from peers.protocol import Answer, Job, Options, serve

BATCH_SIZE = 32
PAD_TOKEN = 0


class PaddedAnswerer:
    """Prompts sorted by length, so that little is padded; each batch waits for its longest."""

    def __init__(self, options: Options) -> None:
        torch.set_num_threads(options.threads)
        self.version = transformers.__version__
        self.details: Mapping[str, Any] = {}
        self._model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=getattr(torch, options.dtype)
        ).eval()
        self._model.generation_config.eos_token_id = None
        self._answer_batch([[1, 2, 3]] * 2, 2)

    def run(self, job: Job, request: Mapping[str, Any]) -> Answer:  # noqa: ARG002  # no options
        started = time.perf_counter()
        sizes = [(len(p), n) for p, n in zip(job.prompts, job.output_lengths, strict=True)]
        order = sorted(range(len(sizes)), key=lambda i: (sizes[i][1], sizes[i][0]))
        outputs: list[list[int]] = [[]] * len(sizes)
        for first in range(0, len(order), BATCH_SIZE):
            batch = order[first : first + BATCH_SIZE]
            longest = max(job.output_lengths[i] for i in batch)
            answered = self._answer_batch([job.prompts[i] for i in batch], longest)
            for i, output in zip(batch, answered, strict=True):
                outputs[i] = output[: job.output_lengths[i]]
        return Answer(time.perf_counter() - started, outputs)

    def _answer_batch(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        token_ids = [[PAD_TOKEN] * n + prompt for n, prompt in zip(padding, prompts, strict=True)]
        mask = [[0] * n + [1] * (longest - n) for n in padding]
        output = self._model.generate(
            input_ids=torch.tensor(token_ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=PAD_TOKEN,
        )
        generated: list[list[int]] = output[:, longest:].tolist()
        return generated


if __name__ == "__main__":
    serve(PaddedAnswerer)
