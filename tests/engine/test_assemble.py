"""Settings that cannot work end with one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from trunkline.engine.assemble import assemble
from trunkline.engine.config import Device, EngineConfig, KVCacheDtype, LoadFormat
from trunkline.engine.runner import Runner
from trunkline.options import ConfigError
from trunkline.store.model_names import DEFAULT_MODEL


def settings(model: str, **others: object) -> EngineConfig:
    return EngineConfig.model_validate(
        {
            "model": model,
            "device": Device.CPU,
            "threads": torch.get_num_threads(),
            "kv_cache_bytes": 2**24,
            "max_batch_tokens": 256,
            **others,
        }
    )


def test_on_a_cpu_steps_are_not_planned_ahead(small_folder: Path) -> None:
    assembly = assemble(settings(str(small_folder), load_format=LoadFormat.DUMMY))
    runner = assembly.engine.runner
    assert isinstance(runner, Runner)
    assert runner.lookahead == 0
    assert assembly.engine.scheduler.config.max_batch_tokens == 256


def test_an_fp8_cache_takes_a_gpu(small_folder: Path) -> None:
    config = settings(
        str(small_folder), kv_cache_dtype=KVCacheDtype.FP8, load_format=LoadFormat.DUMMY
    )
    with pytest.raises(ConfigError, match="--kv-cache-dtype is 'fp8', which takes a GPU"):
        assemble(config)


def test_a_cache_without_room_for_a_page(small_folder: Path) -> None:
    config = settings(str(small_folder), kv_cache_bytes=1000, load_format=LoadFormat.DUMMY)
    with pytest.raises(ConfigError, match="a KV cache of 1000 bytes cannot hold one page"):
        assemble(config)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    LlamaConfig(num_hidden_layers=1, hidden_size=32, vocab_size=64).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no tokenizer that transformers can load"):
        assemble(settings(str(tmp_path), load_format=LoadFormat.DUMMY))


def test_an_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_MAX_CPU_ISA", "avx1024")
    with pytest.raises(ConfigError, match="TRUNKLINE_MAX_CPU_ISA is 'avx1024'; allowed are avx2"):
        assemble(settings(DEFAULT_MODEL, load_format=LoadFormat.DUMMY))
