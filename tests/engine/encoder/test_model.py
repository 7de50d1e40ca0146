"""Encoders give what transformers gives, whatever else is in the batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from trunkline.engine.encoder.config import ENCODER_MODEL_TYPES, is_encoder
from trunkline.engine.encoder.model import Encoder, EncoderInput, load_encoder
from trunkline.engine.encoder.tokenizer import EncoderTokenizer
from trunkline.engine.model.config import UnsupportedModelError
from trunkline.engine.model.load_format import LoadFormat
from trunkline.engine.model.weights import WeightsError
from trunkline.engine.prompt_reading import Pooling

MakeEncoder = Callable[..., Path]

POOLING = {
    Pooling.MEAN: {"pooling_mode_mean_tokens": True},
    Pooling.FIRST: {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True},
    Pooling.LAST: {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True},
}


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _texts(num: int) -> list[str]:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 30, num)
    return [" ".join(f"w{word}" for word in generator.integers(0, 200, n)) for n in lengths]


TEXTS = _texts(9)


def _load(folder: Path) -> Encoder:
    return load_encoder(folder, torch.float32, DEVICE, LoadFormat.AUTO)


def _inputs(folder: Path, texts: list[str]) -> list[EncoderInput]:
    return EncoderTokenizer(folder, lowercases=False).encode_texts(texts)


def _pooled(folder: Path, texts: list[str], pooling: Pooling) -> NDArray[np.float32]:
    """With transformers alone, each text by itself, so without any padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    vectors = []
    for text in texts:
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vectors.append(
            {
                Pooling.MEAN: lambda h: h.mean(0),
                Pooling.FIRST: lambda h: h[0],
                Pooling.LAST: lambda h: h[-1],
            }[pooling](hidden)
        )
    return torch.stack(vectors).numpy()


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "modernbert"])
def test_embeddings_are_those_of_transformers(
    make_encoder: MakeEncoder, model_type: str, pooling: Pooling
) -> None:
    folder = make_encoder(model_type, pooling=POOLING[pooling])
    encoder = _load(folder)
    assert encoder.pooling.mode is pooling
    assert not encoder.is_cross_encoder
    found = encoder.run(_inputs(folder, TEXTS)).cpu().numpy()
    assert found.shape == (len(TEXTS), encoder.num_dimensions)
    expected = _pooled(folder, TEXTS, pooling)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2  # so that 1e-4 says something
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("model_type", ENCODER_MODEL_TYPES)
def test_padding_changes_nothing(make_encoder: MakeEncoder, model_type: str) -> None:
    folder = make_encoder(model_type)
    assert is_encoder(folder)
    encoder = _load(folder)
    found = encoder.run(_inputs(folder, TEXTS)).cpu().numpy()
    np.testing.assert_allclose(found, _pooled(folder, TEXTS, Pooling.MEAN), atol=1e-4)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet", "modernbert", "deberta-v2"])
def test_the_longest_input_runs(make_encoder: MakeEncoder, model_type: str) -> None:
    folder = make_encoder(model_type)
    encoder = _load(folder)
    words = " ".join(["w1"] * (encoder.max_input_tokens - 2))
    (longest,) = _inputs(folder, [words])
    assert len(longest.tokens) == encoder.max_input_tokens
    found = encoder.run([longest]).cpu().numpy()
    np.testing.assert_allclose(found, _pooled(folder, [words], Pooling.MEAN), atol=1e-4)


def test_how_long_an_input_may_be(make_encoder: MakeEncoder) -> None:
    assert _load(make_encoder("bert")).max_input_tokens == 64
    # Positions are counted from the one after that of padding.
    assert _load(make_encoder("roberta", pad_token_id=0)).max_input_tokens == 63
    assert _load(make_encoder("mpnet")).max_input_tokens == 62
    assert _load(make_encoder("bert", limits={"max_seq_length": 20})).max_input_tokens == 20
    assert _load(make_encoder("bert", limits={"max_seq_length": 500})).max_input_tokens == 64
    assert _load(make_encoder("bert", limits={"max_seq_length": None})).max_input_tokens == 64


def _logits(folder: Path, pairs: list[tuple[str, str]]) -> NDArray[np.float32]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = [model(**tokenizer(a, b, return_tensors="pt")).logits[0] for a, b in pairs]
    return torch.stack(logits).numpy()


@pytest.mark.parametrize(
    "model_type", ["bert", "roberta", "distilbert", "modernbert", "deberta-v2"]
)
def test_scores_are_those_of_transformers(make_encoder: MakeEncoder, model_type: str) -> None:
    folder = make_encoder(model_type, num_labels=1)
    encoder = _load(folder)
    assert encoder.is_cross_encoder
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    inputs = EncoderTokenizer(folder, lowercases=False).encode_pairs(pairs)
    found = encoder.run(inputs).cpu().numpy()
    logits = _logits(folder, pairs)
    assert np.ptp(logits) > 1e-2
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=1e-4)


def test_the_texts_of_a_pair_are_told_apart(make_encoder: MakeEncoder) -> None:
    folder = make_encoder("bert", num_labels=1)
    (pair,) = EncoderTokenizer(folder, lowercases=False).encode_pairs([("w1 w2", "w3")])
    assert pair.pair_start == 4  # [CLS] w1 w2 [SEP]
    encoder = _load(folder)
    as_one = EncoderInput(pair.tokens)
    assert not torch.allclose(encoder.run([pair]), encoder.run([as_one]), atol=2e-4)


def test_what_is_said_of_a_cross_encoder(make_encoder: MakeEncoder) -> None:
    limits = {"max_seq_length": 30, "do_lower_case": True}
    steps = ("Transformer", "LogitScore")  # of the head's own
    encoder = _load(make_encoder(num_labels=1, pooling={}, steps=steps, limits=limits))
    assert encoder.max_input_tokens == 30
    assert encoder.pooling.lowercases


@pytest.mark.parametrize(
    ("settings", "activate"),
    [
        (
            {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
            lambda x: x,
        ),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
            lambda x: x,
        ),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}},
            np.tanh,
        ),
    ],
)
def test_activations(
    make_encoder: MakeEncoder, settings: dict[str, Any], activate: Callable[[Any], Any]
) -> None:
    folder = make_encoder("bert", num_labels=1, **settings)
    pairs = [("w1", "w2 w3"), ("w4 w5", "w6")]
    inputs = EncoderTokenizer(folder, lowercases=False).encode_pairs(pairs)
    found = _load(folder).run(inputs).cpu().numpy()
    np.testing.assert_allclose(found, activate(_logits(folder, pairs)), atol=1e-4)


def test_an_unknown_activation(make_encoder: MakeEncoder) -> None:
    name = "torch.nn.modules.activation.GELU"
    folder = make_encoder("bert", num_labels=1, sbert_ce_default_activation_function=name)
    with pytest.raises(UnsupportedModelError, match="scores by 'GELU' are not supported; suppor"):
        _load(folder)


def test_a_classifier(make_encoder: MakeEncoder) -> None:
    with pytest.raises(UnsupportedModelError, match="with 3 labels is not supported"):
        _load(make_encoder("bert", num_labels=3))


def _without(folder: Path, prefix: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    assert len(kept) < len(tensors)
    save_file(kept, path, metadata={"format": "pt"})


def test_weights_that_are_missing(
    make_encoder: MakeEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    folder = make_encoder("bert")
    _without(folder, "pooler.")
    _load(folder)  # nothing reads it
    _without(folder, "encoder.layer.1.")
    with pytest.raises(WeightsError, match=r"lack 16 tensors, among them encoder\.layer\.1\."):
        _load(folder)
    scoring = make_encoder("bert", num_labels=1)
    _without(scoring, "classifier.")
    with pytest.raises(WeightsError, match=r"lack 2 tensors, among them classifier\.bias"):
        _load(scoring)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        _load(folder)


def test_random_weights_for_measurements(make_encoder: MakeEncoder) -> None:
    folder = make_encoder("bert")
    (folder / "model.safetensors").unlink()
    first, second = (
        load_encoder(folder, torch.float32, DEVICE, LoadFormat.DUMMY).run(_inputs(folder, TEXTS))
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_what_an_encoder_is(tmp_path: Path) -> None:
    assert not is_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert not is_encoder(tmp_path)
    (tmp_path / "config.json").write_text("[")
    assert not is_encoder(tmp_path)


def test_lower_case(make_encoder: MakeEncoder) -> None:
    folder = make_encoder("bert")
    tokenizer = EncoderTokenizer(folder, lowercases=True)
    (upper,), (lower,) = tokenizer.encode_texts(["W1 w2"]), tokenizer.encode_texts(["w1 w2"])
    assert upper.tokens.tolist() == lower.tokens.tolist()
    (pair,) = tokenizer.encode_pairs([("W1", "W2")])
    (kept,) = EncoderTokenizer(folder, lowercases=False).encode_texts(["W1 w2"])
    unknown = 3
    assert kept.tokens[1] == unknown
    assert unknown not in pair.tokens
