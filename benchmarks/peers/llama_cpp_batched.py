"""llama.cpp: continuous batching in one unified cache, shared prefixes copied between sequences.

What its `examples/parallel` does, for many prompts: a fixed number of sequences run at once; when
one is through, the next prompt takes its place, and begins with the cells of the sequence that it
shares most with. Prompts are sorted, so that those which share a prefix run side by side.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp as api  # type: ignore[import-not-found]  # only in its own environment
import numpy as np
from numpy.typing import NDArray

from peers.gguf_file import write_gguf
from peers.protocol import Answer, Job, Options, serve

Tokens = NDArray[np.int64]

PARALLEL = 16
BATCH_TOKENS = 2048
MICRO_BATCH_TOKENS = 512
KEEP_ALL = -1  # of a position: open end


@dataclass
class Running:
    """A sequence in one of the places."""

    index: int  # of its prompt
    place: int  # llama.cpp's sequence id
    prompt: Tokens
    tokens: list[int]  # prompt and output
    num_computed: int
    num_left: int
    output: list[int] = field(default_factory=list)


class LlamaCppAnswerer:
    """llama.cpp's library, driven token by token."""

    def __init__(self, options: Options) -> None:
        self.version = importlib.metadata.version("llama-cpp-python")
        self.details: Mapping[str, Any] = {}
        api.llama_backend_init()
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "model.gguf"
            write_gguf(options.model, path)
            model_params = api.llama_model_default_params()
            model_params.use_mmap = False
            self._model = api.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise RuntimeError("llama.cpp cannot load the converted model")
        self._threads = options.threads
        self._vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._batch = api.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.run(Job([[1, 2, 3]] * 2, [2, 2]), {})

    def run(self, job: Job, request: Mapping[str, Any]) -> Answer:  # noqa: ARG002  # no options
        longest = max(len(p) + n for p, n in zip(job.prompts, job.output_lengths, strict=True))
        params = api.llama_context_default_params()
        params.n_ctx = PARALLEL * (longest + 1)
        params.n_batch = BATCH_TOKENS
        params.n_ubatch = MICRO_BATCH_TOKENS
        params.n_seq_max = PARALLEL
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = True
        context = api.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError(f"llama.cpp makes no context of {params.n_ctx} tokens")
        try:
            prompts = [np.array(prompt) for prompt in job.prompts]
            order = sorted(range(len(prompts)), key=lambda i: job.prompts[i], reverse=True)
            started = time.perf_counter()
            outputs = self._answer(context, prompts, job.output_lengths, order)
            return Answer(time.perf_counter() - started, outputs)
        finally:
            api.llama_free(context)

    def _answer(
        self, context: Any, prompts: list[Tokens], lengths: list[int], waiting: list[int]
    ) -> list[list[int]]:
        """Answer the prompts of `waiting`, its last one first."""
        memory = api.llama_get_memory(context)
        outputs: list[list[int]] = [[]] * len(waiting)
        running: list[Running] = []
        free = list(range(PARALLEL))
        while waiting or running:
            while waiting and free and _may_start(running, prompts[waiting[-1]]):
                index = waiting.pop()
                shared, source = _best_source(running, prompts[index])
                place = free.pop()
                if shared:
                    api.llama_memory_seq_cp(memory, source, place, 0, shared)
                prompt = prompts[index]
                known = prompt.tolist()
                running.append(Running(index, place, prompt, known, shared, lengths[index]))
            self._step(context, running)
            for done in [one for one in running if one.num_left == 0]:
                outputs[done.index] = done.output
                api.llama_memory_seq_rm(memory, done.place, KEEP_ALL, KEEP_ALL)
                free.append(done.place)
                running.remove(done)
        return outputs

    def _step(self, context: Any, running: list[Running]) -> None:
        """One batch: what is behind of every sequence, decode tokens first."""
        batch, filled = self._batch, 0
        sampled: list[tuple[int, Running]] = []
        for one in sorted(running, key=lambda r: len(r.tokens) - r.num_computed):
            end = min(len(one.tokens), one.num_computed + BATCH_TOKENS - filled)
            for position in range(one.num_computed, end):
                batch.token[filled] = one.tokens[position]
                batch.pos[filled] = position
                batch.n_seq_id[filled] = 1
                batch.seq_id[filled][0] = one.place
                batch.logits[filled] = position == len(one.tokens) - 1
                filled += 1
            if end == len(one.tokens):
                sampled.append((filled - 1, one))
            one.num_computed = end
        batch.n_tokens = filled
        if api.llama_decode(context, batch) != 0:
            raise RuntimeError("llama.cpp finds no room in its cache")
        for row, one in sampled:
            logits = api.llama_get_logits_ith(context, row)
            token = int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())
            one.tokens.append(token)
            one.output.append(token)
            one.num_left -= 1


def _may_start(running: list[Running], prompt: Tokens) -> bool:
    """Not yet, when what the prompt shares with a running one is still to be computed."""
    return all(one.num_computed >= _num_shared(one, prompt) for one in running)


def _best_source(running: list[Running], prompt: Tokens) -> tuple[int, int]:
    """How many computed tokens the prompt shares with a running one, and that one's place."""
    found = [(min(_num_shared(one, prompt), one.num_computed), one.place) for one in running]
    return max(found, default=(0, 0))


def _num_shared(running: Running, prompt: Tokens) -> int:
    """Tokens that both prompts begin with; the last one of `prompt` has to be computed anyway."""
    most = min(len(running.prompt), len(prompt) - 1)
    different = np.flatnonzero(running.prompt[:most] != prompt[:most])
    return int(different[0]) if len(different) else most


if __name__ == "__main__":
    serve(LlamaCppAnswerer)
