"""What many tests of the engine begin with: a small model, and a cache that nobody has written."""

from __future__ import annotations

import torch
from transformers import LlamaConfig

from trunkline.engine.kv_cache import KVCache, allocate_kv_cache
from trunkline.engine.model.config import ModelConfig, config_from_hf
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.model.weights import assemble, random_tensors, tensor_shapes

CPU = torch.device("cpu")


def tiny_decoder(vocab_size: int) -> Decoder:
    """A Llama of two layers with random weights, in float32 on the CPU; no token ends an output."""
    config = config_from_hf(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            eos_token_id=None,
            bos_token_id=None,
        )
    )
    return assemble(config, random_tensors(tensor_shapes(config), torch.float32, CPU))


def unwritten_cache(
    config: ModelConfig,
    num_pages: int,
    page_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> KVCache:
    """A cache that turns every result into NaN which reads what was not written."""
    cache = allocate_kv_cache(config, dtype, device, num_pages, page_size)
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(torch.nan)
    return cache
