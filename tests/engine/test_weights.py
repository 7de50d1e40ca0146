"""Loading: dtypes, shards, and checkpoints that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from trunkline.engine.model.load_format import LoadFormat
from trunkline.engine.model.weights import (
    WeightsError,
    load_model,
    random_tensors,
    read_tensors,
    resolve_dtype,
)

CPU = torch.device("cpu")
F32 = torch.float32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, *, drop: str = "", **tensors: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if name != drop}
    save_file(kept | tensors, path)


def test_shards_hold_what_one_file_holds(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sharded = tmp_path_factory.mktemp("sharded")
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    names = {name: tuple(t.shape) for name, t in load_file(folder / "model.safetensors").items()}
    one, many = read_tensors(folder, names, F32, CPU), read_tensors(sharded, names, F32, CPU)
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_the_asked_one(folder: Path, dtype: torch.dtype) -> None:
    model = load_model(folder, dtype, CPU, LoadFormat.SAFETENSORS)
    assert model.decoder.dtype == dtype
    assert model.folder == folder
    assert model.config.max_context_tokens == 64


def test_dummy_weights_need_no_weights_file_and_repeat(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    load_model(folder, F32, CPU, LoadFormat.DUMMY)
    shapes = {"a.weight": (3, 4), "norm.weight": (5,)}
    first, second = random_tensors(shapes, F32, CPU), random_tensors(shapes, F32, CPU)
    assert torch.equal(first["a.weight"], second["a.weight"])
    assert torch.equal(first["norm.weight"], torch.ones(5))


def test_a_missing_tensor(folder: Path) -> None:
    rewrite(folder, drop="model.norm.weight")
    with pytest.raises(WeightsError, match=r"missing: model\.norm\.weight; not known: none"):
        load_model(folder, F32, CPU, LoadFormat.AUTO)


def test_an_unknown_tensor(folder: Path) -> None:
    rewrite(folder, extra=torch.ones(2))
    with pytest.raises(WeightsError, match="missing: none; not known: extra"):
        load_model(folder, F32, CPU, LoadFormat.AUTO)


def test_a_wrong_shape(folder: Path) -> None:
    rewrite(folder, **{"model.norm.weight": torch.ones(31)})
    with pytest.raises(WeightsError, match=r"has the shape \(31,\), the configuration says \(32,"):
        load_model(folder, F32, CPU, LoadFormat.AUTO)


def test_no_weights_and_no_configuration(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        load_model(folder, F32, CPU, LoadFormat.AUTO)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_model(folder, F32, CPU, LoadFormat.AUTO)


def test_dtype_names() -> None:
    assert resolve_dtype("float16", CPU) == torch.float16
    assert resolve_dtype("auto", CPU) in {torch.float32, torch.bfloat16}
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    with pytest.raises(ValueError, match="dtype 'int8' is unknown; allowed are auto, float32"):
        resolve_dtype("int8", CPU)
