"""A decoder's shape, read from a Hugging Face `config.json` and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# "dynamic" and "longrope" change the frequencies with the length of each sequence.
SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


class UnsupportedModelError(ValueError):
    """The model needs something that the decoder does not have."""


@dataclass(frozen=True)
class ModelConfig:
    """All that the decoder needs to know of a model."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context_tokens: int
    rms_norm_eps: float
    rope_inv_freq: tuple[float, ...]  # [head_dim / 2] radians per position
    rope_amplitude: float  # multiplies cos and sin (yarn)
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    ties_embeddings: bool
    # Per layer: how many positions, its own included, a row attends to. None: all.
    windows: tuple[int | None, ...]


def load_config(folder: Path) -> ModelConfig:
    """Read `folder`/config.json.

    Raises:
        UnsupportedModelError: the decoder cannot run this model.
        FileNotFoundError: there is no config.json.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json, so it is not a model folder")
    return config_from_hf(AutoConfig.from_pretrained(str(folder)))


def config_from_hf(hf: Any) -> ModelConfig:
    """Convert a transformers configuration object.

    Raises:
        UnsupportedModelError: see `load_config`.
    """
    if hf.model_type not in SUPPORTED_MODEL_TYPES:
        raise UnsupportedModelError(
            f"model_type {hf.model_type!r} is not supported; "
            f"supported are {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    if hf.hidden_act != "silu":
        raise UnsupportedModelError(f"hidden_act {hf.hidden_act!r} is not supported; only 'silu'")
    num_heads = hf.num_attention_heads
    num_kv_heads = hf.num_key_value_heads or num_heads
    if num_heads % num_kv_heads:
        raise UnsupportedModelError(
            f"num_attention_heads {num_heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // num_heads
    inv_freq, amplitude = _rope_frequencies(hf, head_dim)
    attention_bias = bool(getattr(hf, "attention_bias", False))
    return ModelConfig(
        model_type=hf.model_type,
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        num_layers=hf.num_hidden_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_context_tokens=hf.max_position_embeddings,
        rms_norm_eps=hf.rms_norm_eps,
        rope_inv_freq=inv_freq,
        rope_amplitude=amplitude,
        has_qkv_bias=attention_bias or hf.model_type == "qwen2",
        has_output_bias=attention_bias,
        has_mlp_bias=bool(getattr(hf, "mlp_bias", False)),
        has_qk_norm=hf.model_type == "qwen3",
        ties_embeddings=bool(hf.tie_word_embeddings),
        windows=_windows(hf),
    )


def _rope_frequencies(hf: Any, head_dim: int) -> tuple[tuple[float, ...], float]:
    rope = hf.rope_parameters
    rope_type = rope.get("rope_type", "default")
    if rope_type not in SUPPORTED_ROPE_TYPES:
        raise UnsupportedModelError(
            f"rope_type {rope_type!r} is not supported; "
            f"supported are {', '.join(SUPPORTED_ROPE_TYPES)}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError("partial_rotary_factor other than 1 is not supported")
    if rope_type == "default":
        base = rope["rope_theta"]
        return tuple(base ** (-i / head_dim) for i in range(0, head_dim, 2)), 1.0
    inv_freq, amplitude = ROPE_INIT_FUNCTIONS[rope_type](hf, device=None)
    return tuple(inv_freq.tolist()), float(amplitude)


def _windows(hf: Any) -> tuple[int | None, ...]:
    window = getattr(hf, "sliding_window", None)
    if not getattr(hf, "use_sliding_window", True):
        window = None
    layer_types = getattr(hf, "layer_types", None)
    if layer_types is None:
        return (window,) * int(hf.num_hidden_layers)
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
