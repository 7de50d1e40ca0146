"""The models of the tests, made once and kept in Trunkline's cache.

Where it does not matter what an answer says, the small one gives it: at once, on any machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support import cache_dir
from trunkline.engine.default_model import resolve_model
from trunkline.store.model_names import DEFAULT_MODEL

# What the small model has otherwise than the default. Its head is not its embedding: else the
# likeliest token after each is the same one again.
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
    "dtype": "float32",
}
SEED = 0


def default_model() -> Path:
    """The folder of the embedded default, SmolLM2-135M-Instruct; fetched where needed."""
    return resolve_model(DEFAULT_MODEL, cache_dir())


def small_model() -> Path:
    """The folder of a Llama of two layers with random weights and the default's tokenizer.

    It talks nonsense, and does not stop by itself.
    """
    source = default_model()
    made_of = json.dumps([SMALL, SEED, source.name], sort_keys=True)
    name = f"small-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    target = cache_dir() / "tests" / name
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix="make-"))
        _make(source, scratch)
        with suppress(OSError):  # another process was first
            scratch.rename(target)
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _make(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    config = LlamaConfig.from_pretrained(source, **SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        LlamaForCausalLM(config).save_pretrained(folder)
