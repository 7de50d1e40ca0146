"""The GGUF file that llama.cpp gets has the model's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peers.gguf_file import write_gguf
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> LlamaForCausalLM:
    """A tiny model, also in `tmp_path`."""
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    made = LlamaForCausalLM(config).to(torch.bfloat16)
    made.save_pretrained(tmp_path)
    return made


def test_weights_come_back(model: LlamaForCausalLM, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(tmp_path, path)
    found = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    wanted = load_file(tmp_path / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name].to(torch.bfloat16), tensor), name


def test_other_types_are_refused(model: LlamaForCausalLM, tmp_path: Path) -> None:
    weights = {"model.norm.weight": torch.ones(64)}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="only BF16"):
        write_gguf(tmp_path, tmp_path / "model.gguf")
