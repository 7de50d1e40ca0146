"""Loads a decoder from a model folder: safetensors, or random weights for measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from trunkline.engine.model.config import ModelConfig, load_config
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.model.layers import LayerWeights
from trunkline.engine.model.load_format import LoadFormat
from trunkline.kernels.cpu_isa import multiplies_bfloat16

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class WeightsError(ValueError):
    """The checkpoint's tensors are not those of the configured model."""


@dataclass(frozen=True)
class LoadedModel:
    """A decoder that is ready to run, and where it came from."""

    decoder: Decoder
    config: ModelConfig
    folder: Path


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`.

    "auto" is bfloat16 where the device multiplies it fast: on GPUs and on CPUs with AVX512-BF16
    or AMX. Elsewhere it is float32.

    Raises:
        ValueError: an unknown name.
    """
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise ValueError(f"dtype {name!r} is unknown; allowed are auto, {', '.join(DTYPES)}")
    if device.type == "cuda" or multiplies_bfloat16():
        return torch.bfloat16
    return torch.float32


def load_model(
    folder: Path, dtype: torch.dtype, device: torch.device, load_format: LoadFormat
) -> LoadedModel:
    """Load the model in `folder` (see `default_model.resolve_model`).

    Raises:
        WeightsError: tensors are missing, unknown or of another shape.
        UnsupportedModelError: the decoder cannot run this model.
        FileNotFoundError: the folder has no configuration or no weights.
    """
    config = load_config(folder)
    shapes = tensor_shapes(config)
    if load_format is LoadFormat.DUMMY:
        tensors = random_tensors(shapes, dtype, device)
    else:
        tensors = read_tensors(folder, shapes, dtype, device)
    return LoadedModel(assemble(config, tensors), config, folder)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The checkpoint's tensors, by Hugging Face's names for this family of models."""
    hidden, mlp, dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_size, kv_size = config.num_heads * dim, config.num_kv_heads * dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.ties_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    products = {
        "self_attn.q_proj": (q_size, hidden, config.has_qkv_bias),
        "self_attn.k_proj": (kv_size, hidden, config.has_qkv_bias),
        "self_attn.v_proj": (kv_size, hidden, config.has_qkv_bias),
        "self_attn.o_proj": (hidden, q_size, config.has_output_bias),
        "mlp.gate_proj": (mlp, hidden, config.has_mlp_bias),
        "mlp.up_proj": (mlp, hidden, config.has_mlp_bias),
        "mlp.down_proj": (hidden, mlp, config.has_mlp_bias),
    }
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        if config.has_qk_norm:
            shapes[prefix + "self_attn.q_norm.weight"] = (dim,)
            shapes[prefix + "self_attn.k_norm.weight"] = (dim,)
        for name, (out_size, in_size, has_bias) in products.items():
            shapes[f"{prefix}{name}.weight"] = (out_size, in_size)
            if has_bias:
                shapes[f"{prefix}{name}.bias"] = (out_size,)
    return shapes


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Weights that keep activations of the order of one, made on the device itself.

    Equal on every run on the same kind of device.
    """
    generator = torch.Generator(device).manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        tensor = torch.empty(shape, dtype=dtype, device=device)
        if name.endswith("norm.weight"):
            tensors[name] = tensor.fill_(1.0)
        else:
            tensors[name] = tensor.normal_(0.0, shape[-1] ** -0.5, generator=generator)
    return tensors


def read_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Tensor]:
    """Read exactly the tensors of `shapes` from the safetensors files in `folder`.

    Raises:
        WeightsError: see `load_model`.
        FileNotFoundError: see `load_model`.
    """
    tensors: dict[str, Tensor] = {}
    unknown: list[str] = []
    for path in _weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping: it cannot be iterated
                if name in shapes:
                    tensor = file.get_tensor(name)
                    if tuple(tensor.shape) != shapes[name]:
                        raise WeightsError(
                            f"{path}: {name} has the shape {tuple(tensor.shape)}, "
                            f"the configuration says {shapes[name]}"
                        )
                    tensors[name] = tensor.to(device, dtype)
                elif not _is_redundant(name):
                    unknown.append(name)
    missing = sorted(shapes.keys() - tensors.keys())
    if missing or unknown:
        raise WeightsError(
            f"{folder}: the checkpoint does not fit the configuration; "
            f"missing: {_listed(missing)}; not known: {_listed(sorted(unknown))}"
        )
    return tensors


def assemble(config: ModelConfig, tensors: dict[str, Tensor]) -> Decoder:
    """Fuse the products that share an input and build the decoder.

    Args:
        config: the model's shape.
        tensors: see `tensor_shapes`. What is fused is taken out, so that it is not there twice.
    """

    def fused(prefix: str, names: tuple[str, ...], suffix: str) -> Tensor | None:
        parts = [tensors.pop(f"{prefix}{name}.{suffix}", None) for name in names]
        present = [part for part in parts if part is not None]
        return torch.cat(present) if len(present) > 1 else (present[0] if present else None)

    layers = []
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        qkv = ("q_proj", "k_proj", "v_proj")
        gate_up = ("gate_proj", "up_proj")
        qkv_weight, gate_up_weight = (
            fused(attention, qkv, "weight"),
            fused(mlp, gate_up, "weight"),
        )
        assert qkv_weight is not None
        assert gate_up_weight is not None
        qk_norm = None
        if config.has_qk_norm:
            q_norm = tensors[attention + "q_norm.weight"].expand(config.num_heads, -1)
            k_norm = tensors[attention + "k_norm.weight"].expand(config.num_kv_heads, -1)
            qk_norm = torch.cat([q_norm, k_norm])
        layers.append(
            LayerWeights(
                input_norm=tensors[prefix + "input_layernorm.weight"],
                qkv=qkv_weight,
                qkv_bias=fused(attention, qkv, "bias"),
                qk_norm=qk_norm,
                output=tensors[attention + "o_proj.weight"],
                output_bias=tensors.get(attention + "o_proj.bias"),
                mlp_norm=tensors[prefix + "post_attention_layernorm.weight"],
                gate_up=gate_up_weight,
                gate_up_bias=fused(mlp, gate_up, "bias"),
                down=tensors[mlp + "down_proj.weight"],
                down_bias=tensors.get(mlp + "down_proj.bias"),
            )
        )
    embedding = tensors["model.embed_tokens.weight"]
    head = embedding if config.ties_embeddings else tensors["lm_head.weight"]
    return Decoder(config, embedding, tuple(layers), tensors["model.norm.weight"], head)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        paths = [folder / name for name in sorted(names)]
    else:
        paths = [folder / SINGLE_FILE]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing; weights are read from {SINGLE_FILE} or from the files that "
                f"{INDEX_FILE} lists"
            )
    return paths


def _is_redundant(name: str) -> bool:
    """Tensors that some checkpoints hold though they follow from others."""
    return name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
