"""The embedded default model, loaded once for all tests that need a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trunkline.engine.config import EngineConfig
from trunkline.engine.default_model import resolve_model
from trunkline.engine.model.load_format import LoadFormat
from trunkline.engine.model.weights import LoadedModel, load_model
from trunkline.store.model_names import DEFAULT_MODEL


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    return resolve_model(DEFAULT_MODEL, EngineConfig().cache_dir.expanduser())


@pytest.fixture(scope="session")
def smollm2(smollm2_folder: Path) -> LoadedModel:
    """SmolLM2-135M-Instruct in float32 on the CPU."""
    return load_model(smollm2_folder, torch.float32, torch.device("cpu"), LoadFormat.AUTO)
