"""How a model's weights are stored."""

from enum import StrEnum


class LoadFormat(StrEnum):
    """How the weights are stored."""

    AUTO = "auto"
    SAFETENSORS = "safetensors"
    GGUF = "gguf"  # converted once to safetensors, in the cache folder
    DUMMY = "dummy"  # random weights of the model's shape, for benchmarks
