"""The models of the tests, loaded once for all tests that need one; a tiny tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.engine.tiny import CPU
from tests.models import default_model, small_model
from trunkline.engine.model.load_format import LoadFormat
from trunkline.engine.model.weights import LoadedModel, load_model


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    return default_model()


@pytest.fixture(scope="session")
def smollm2(smollm2_folder: Path) -> LoadedModel:
    """SmolLM2-135M-Instruct in float32 on the CPU."""
    return load_model(smollm2_folder, torch.float32, CPU, LoadFormat.AUTO)


@pytest.fixture(scope="session")
def small_folder() -> Path:
    return small_model()


@pytest.fixture(scope="session")
def small(small_folder: Path) -> LoadedModel:
    """Two layers with random weights and SmolLM2's tokenizer, in float32 on the CPU."""
    return load_model(small_folder, torch.float32, CPU, LoadFormat.AUTO)


@pytest.fixture(scope="session")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a token for each byte, 260 in all.

    0 and 1 end an output, 2 and 3 are `<think>` and `</think>`, 4 onwards the bytes, in the order
    of ByteLevel's alphabet.
    """
    folder = tmp_path_factory.mktemp("byte-tokenizer")
    special = ["<eos>", "<end>", "<think>", "</think>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1]}))
    return folder
