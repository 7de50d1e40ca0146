"""Models of the GPU parts: real shapes with random weights, and a small one beside transformers."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, Qwen2Config

from gpu.machine import IS_TOY
from trunkline.engine.model.config import config_from_hf
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.model.weights import assemble, tensor_shapes

LLAMA_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    tie_word_embeddings=False,
    architectures=["LlamaForCausalLM"],
    dtype="bfloat16",
)
QWEN_7B = Qwen2Config(
    vocab_size=152_064,
    hidden_size=3584,
    intermediate_size=18_944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    max_position_embeddings=32_768,
    rms_norm_eps=1e-6,
    rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    tie_word_embeddings=False,
    use_sliding_window=False,
    architectures=["Qwen2ForCausalLM"],
    dtype="bfloat16",
)
TOY = LlamaConfig(
    vocab_size=32_000,  # of the workloads
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=1024,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    tie_word_embeddings=True,
    architectures=["LlamaForCausalLM"],
)
# Deep and wide enough that an error in any kernel shows in the tokens.
SMALL = LlamaConfig(
    vocab_size=8192,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=6,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=64,
    max_position_embeddings=4096,
    initializer_range=0.05,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    tie_word_embeddings=False,
)


def shapes() -> dict[str, PretrainedConfig]:
    """By name, those that speed is measured with."""
    return {"toy": TOY} if IS_TOY else {"Llama-3.1-8B": LLAMA_8B, "Qwen2.5-7B": QWEN_7B}


def of_layers(config: PretrainedConfig, num_layers: int) -> PretrainedConfig:
    """The same model with fewer layers."""
    changes = {"num_hidden_layers": num_layers, "layer_types": None}
    return type(config)(**{**config.to_dict(), **changes})


def small_pair(dtype: torch.dtype, device: torch.device) -> tuple[LlamaForCausalLM, Decoder]:
    """A small random model as transformers' and as ours, with the same weights."""
    config = TOY if IS_TOY else SMALL
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(config).to(device, dtype).eval()
    theirs.generation_config.eos_token_id = None
    own_config = config_from_hf(config)
    weights = theirs.state_dict()
    tensors = {name: weights[name].clone() for name in tensor_shapes(own_config)}
    return theirs, assemble(own_config, tensors)
