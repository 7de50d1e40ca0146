"""What clients call a model: server and engine must agree on it before the engine has loaded it."""

from __future__ import annotations

from pathlib import Path

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_SERVED_NAME = "SmolLM2-135M-Instruct"


def served_name(model: str) -> str:
    """The name that requests use for the model that the setting `model` names."""
    if model.lower() == DEFAULT_MODEL:
        return DEFAULT_SERVED_NAME
    path = Path(model)
    if path.suffix == ".gguf":
        return path.stem
    return path.resolve().name if path.is_dir() else model
