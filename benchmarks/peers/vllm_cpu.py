"""vLLM on the CPU, at its best: prefix caching on, prompts sorted, its own batch defaults."""

from __future__ import annotations

from peers.protocol import Options, serve
from peers.vllm_engine import VllmAnswerer


def load(options: Options) -> VllmAnswerer:
    # The size of the cache comes from VLLM_CPU_KVCACHE_SPACE, which the benchmark sets.
    return VllmAnswerer(options, {})


if __name__ == "__main__":
    serve(load)
