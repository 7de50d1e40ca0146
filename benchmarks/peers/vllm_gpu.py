"""vLLM on a GPU, at its best: prefix caching, prompts sorted, its own graphs and batch defaults."""

from __future__ import annotations

from peers.protocol import Options, serve
from peers.vllm_engine import VllmAnswerer

# Of the device's memory, at most: another engine has its share beside it.
MEMORY_SHARE = 0.45


def load(options: Options) -> VllmAnswerer:
    return VllmAnswerer(
        options,
        {"kv_cache_memory_bytes": options.kv_bytes, "gpu_memory_utilization": MEMORY_SHARE},
    )


if __name__ == "__main__":
    serve(load)
