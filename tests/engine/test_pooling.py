"""Pooling as model folders say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trunkline.engine.model.config import UnsupportedModelError
from trunkline.engine.pooling import PoolingConfig, read_pooling
from trunkline.engine.prompt_reading import Pooling


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _folder(folder: Path, pooling: object, *steps: str) -> Path:
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ]
    for i, step in enumerate(steps, start=2):
        kind = f"sentence_transformers.models.{step}"
        modules.append({"idx": i, "name": str(i), "path": f"{i}_{step}", "type": kind})
    _write(folder / "modules.json", modules)
    _write(folder / "1_Pooling" / "config.json", pooling)
    return folder


@pytest.mark.parametrize("default", list(Pooling))
def test_a_folder_that_does_not_say(tmp_path: Path, default: Pooling) -> None:
    assert read_pooling(tmp_path, default) == PoolingConfig(default, normalizes=True)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"word_embedding_dimension": 4, "pooling_mode_mean_tokens": True}, Pooling.MEAN),
        ({"word_embedding_dimension": 4}, Pooling.MEAN),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, Pooling.FIRST),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, Pooling.LAST),
        ({"embedding_dimension": 4, "pooling_mode": "mean"}, Pooling.MEAN),
        ({"embedding_dimension": 4, "pooling_mode": "cls"}, Pooling.FIRST),
        ({"embedding_dimension": 4, "pooling_mode": "lasttoken"}, Pooling.LAST),
    ],
)
def test_modes(tmp_path: Path, config: dict[str, Any], expected: Pooling) -> None:
    found = read_pooling(_folder(tmp_path, config, "Normalize"), Pooling.LAST)
    assert found == PoolingConfig(expected, normalizes=True)


def test_without_the_normalising_step(tmp_path: Path) -> None:
    assert not read_pooling(_folder(tmp_path, {}), Pooling.MEAN).normalizes


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "max_tokens"),
        ({"pooling_mode_cls_token": True}, "mean_tokens and cls_token"),
        ({"pooling_mode_mean_tokens": False}, "nothing"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode": ["mean", "cls"]}, "mean and cls"),
    ],
)
def test_modes_that_are_not_supported(tmp_path: Path, config: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"pools by {named}; supported is one of"):
        read_pooling(_folder(tmp_path, config), Pooling.MEAN)


def test_a_step_that_is_not_supported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"step 'Dense'; supported are Transformer, Po"):
        read_pooling(_folder(tmp_path, {}, "Dense", "Normalize"), Pooling.MEAN)


def test_broken_files(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {})
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(UnsupportedModelError, match=r"1_Pooling/config\.json cannot be read"):
        read_pooling(folder, Pooling.MEAN)
    (folder / "modules.json").write_text("[")
    with pytest.raises(UnsupportedModelError, match=r"modules\.json cannot be read"):
        read_pooling(folder, Pooling.MEAN)
    _write(folder / "modules.json", {})
    with pytest.raises(UnsupportedModelError, match="does not hold a JSON array"):
        read_pooling(folder, Pooling.MEAN)
    _write(folder / "modules.json", [{"path": ""}])
    with pytest.raises(UnsupportedModelError, match="has a step without a type"):
        read_pooling(folder, Pooling.MEAN)


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_roberta_config.json"])
def test_limits_of_the_input(tmp_path: Path, name: str) -> None:
    _write(tmp_path / name, {"max_seq_length": 256, "do_lower_case": True})
    found = read_pooling(tmp_path, Pooling.MEAN)
    assert (found.max_input_tokens, found.lowercases) == (256, True)
    _write(tmp_path / name, {"max_seq_length": None})
    found = read_pooling(tmp_path, Pooling.MEAN)
    assert (found.max_input_tokens, found.lowercases) == (None, False)
