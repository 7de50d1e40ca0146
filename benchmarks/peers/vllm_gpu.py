"""vLLM on a GPU, at its best: prefix caching, prompts sorted, its own graphs and batch defaults."""

from __future__ import annotations

from peers.protocol import Answerer, Options, serve

# Of the device's memory, what must be free at the start. The cache has the size that is asked for.
MEMORY_SHARE = 0.5


def load(options: Options) -> Answerer:
    # Not before: what vLLM prints when it is imported is no reply.
    from peers.vllm_engine import VllmAnswerer  # noqa: PLC0415

    return VllmAnswerer(
        options,
        {"kv_cache_memory_bytes": options.kv_bytes, "gpu_memory_utilization": MEMORY_SHARE},
    )


if __name__ == "__main__":
    serve(load)
