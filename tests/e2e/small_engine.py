"""Options of an engine with the small model, for tests that read no answer."""

from __future__ import annotations

from tests.models import small_model

MODEL = "SmolLM2-135M-Instruct"
STEP_TOKENS = 64


def small_engine() -> tuple[str, ...]:
    """Options of `serve`, `engine` and `run`: the small model, by the name of the default.

    In bfloat16 the last bits of a product depend on what else is in the batch. Cache and steps have
    the same size on every machine; what a test gives after these options goes before them.
    """
    return (
        *("--model", str(small_model()), "--served-model-name", MODEL, "--dtype", "float32"),
        *("--kv-cache-bytes", str(256 * 1024 * 1024), "--max-batch-tokens", str(STEP_TOKENS)),
    )
