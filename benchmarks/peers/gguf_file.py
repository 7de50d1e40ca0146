"""Writes a folder of safetensors as a GGUF file in bfloat16, without a vocabulary.

For Llama-like models with one file of weights and tied embeddings. llama.cpp rotates neighbouring
elements of a head, safetensors' models the two halves: the rows of q and k are put in its order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}


def write_gguf(folder: Path, target: Path) -> None:
    """Convert `folder`'s config.json and model.safetensors."""
    config = json.loads((folder / "config.json").read_text())
    writer = GGUFWriter(str(target), "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    rope = config.get("rope_parameters") or config
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    heads_of = {"q_proj": heads, "k_proj": kv_heads}
    for name, read in read_bfloat16(folder / "model.safetensors").items():
        rotated = heads_of.get(name.split(".")[-2])
        weights = read if rotated is None else neighbours_from_halves(read, rotated)
        if weights.ndim == 1:  # norms are float32 there
            wide = (weights.astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(gguf_name(name), wide)
        else:
            writer.add_tensor(
                gguf_name(name), weights.view(np.uint8), raw_dtype=GGMLQuantizationType.BF16
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def neighbours_from_halves(weights: NDArray[np.uint16], heads: int) -> NDArray[np.uint16]:
    """Rows [head, half, pair] as [head, pair, half]."""
    rows, columns = weights.shape
    split = weights.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows, columns)


def read_bfloat16(path: Path) -> dict[str, NDArray[np.uint16]]:
    """The tensors' bits.

    Raises:
        ValueError: a tensor is of another type.
    """
    raw = path.read_bytes()
    header_end = 8 + int.from_bytes(raw[:8], "little")
    header: dict[str, dict[str, Any]] = json.loads(raw[8:header_end])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"{name} in {path} is {entry['dtype']}; only BF16 is converted")
        start, end = entry["data_offsets"]
        bits = np.frombuffer(raw[header_end + start : header_end + end], np.uint16)
        tensors[name] = bits.reshape(entry["shape"])
    return tensors
