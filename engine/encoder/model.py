"""An encoder in transformers' own code, its weights loaded and checked, run on padded batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from trunkline.engine.model.config import UnsupportedModelError
from trunkline.engine.model.load_format import LoadFormat
from trunkline.engine.model.weights import WeightsError
from trunkline.engine.pooling import PoolingConfig, input_limits, read_pooling
from trunkline.engine.prompt_reading import Pooling

# From a cross-encoder's one logit to its score, by the name that sentence-transformers writes.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Sigmoid": torch.sigmoid,
    "Identity": lambda logits: logits,
    "Tanh": torch.tanh,
}
DEFAULT_ACTIVATION = "Sigmoid"


@dataclass(frozen=True)
class EncoderInput:
    """One text, or a pair of texts of which the second begins at token `pair_start`."""

    tokens: NDArray[np.int32]  # [num_tokens]
    pair_start: int | None = None  # where the token types tell the texts of a pair apart


class Encoder:
    """A loaded encoder.

    Attributes:
        is_cross_encoder: it scores pairs of texts; otherwise it embeds texts.
        pooling: how it embeds; of a cross-encoder only the limits count.
        num_dimensions: of its embeddings.
        max_input_tokens: the longest text, or pair, that it takes.
        vocab_size: tokens from this number on it does not know.
        num_layer_parameters: weights that every token is multiplied with.
        hidden_size, num_layers: for the cost of attention.
    """

    def __init__(
        self, model: Any, pooling: PoolingConfig, activation: str | None, device: torch.device
    ) -> None:
        """Run `model`.

        Args:
            model: transformers' module, in evaluation mode on `device`.
            activation: of a cross-encoder's scores, a key of `_ACTIVATIONS`; None: it embeds.
        """
        self._model = model
        self._activation = None if activation is None else _ACTIVATIONS[activation]
        self._device = device
        self._takes_token_types = getattr(model.config, "type_vocab_size", 0) > 1
        self._pad_id: int = model.config.pad_token_id or 0
        embeddings = model.get_input_embeddings()
        self.pooling = pooling
        self.is_cross_encoder = activation is not None
        self.num_dimensions: int = model.config.hidden_size
        self.vocab_size: int = embeddings.num_embeddings
        self.max_input_tokens = min(
            _num_positions(model), pooling.max_input_tokens or _num_positions(model)
        )
        self.hidden_size: int = model.config.hidden_size
        self.num_layers: int = model.config.num_hidden_layers
        self.num_layer_parameters = sum(p.numel() for p in model.parameters()) - (
            embeddings.weight.numel()
        )

    def run(self, inputs: Sequence[EncoderInput]) -> Tensor:
        """Embed or score `inputs` in one batch, each padded to the longest.

        Returns:
            [num_inputs, num_dimensions] pooled vectors, not normalised, or [num_inputs, 1] scores
            of a cross-encoder; float32, on the model's device, where the work may still go on.
        """
        lengths = np.array([len(item.tokens) for item in inputs])
        width = int(lengths.max())
        ids = np.full((len(inputs), width), self._pad_id, np.int64)
        types = np.zeros_like(ids)
        for row, item in enumerate(inputs):
            ids[row, : len(item.tokens)] = item.tokens
            if item.pair_start is not None:
                types[row, item.pair_start : len(item.tokens)] = 1
        is_token = np.arange(width) < lengths[:, None]
        arguments = {
            "input_ids": self._on_device(ids),
            "attention_mask": self._on_device(is_token.astype(np.int64)),
        }
        if self._takes_token_types:
            arguments["token_type_ids"] = self._on_device(types)
        with torch.inference_mode():
            output = self._model(**arguments)
            if self._activation is not None:
                return self._activation(output.logits.float())
            return pool(
                output.last_hidden_state.float(), self._on_device(lengths), self.pooling.mode
            )

    def _on_device(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def pool(hidden: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """One vector for each text.

    Args:
        hidden: [num_texts, width, hidden_size] vectors of tokens, padding behind them.
        lengths: [num_texts] tokens without padding, at least 1.

    Returns:
        [num_texts, hidden_size]
    """
    if pooling is Pooling.FIRST:
        return hidden[:, 0]
    if pooling is Pooling.LAST:
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    is_token = (positions < lengths[:, None])[:, :, None]
    # What is computed for padding may be anything, even no number.
    return hidden.masked_fill(~is_token, 0.0).sum(1) / lengths[:, None]


def load_encoder(
    folder: Path, dtype: torch.dtype, device: torch.device, load_format: LoadFormat
) -> Encoder:
    """Load the encoder in `folder`.

    Raises:
        UnsupportedModelError: it pools, or scores, in a way that there is not.
        WeightsError: weights are missing.
        FileNotFoundError: the folder has no weights.
    """
    transformers_logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    activation = _cross_encoder_activation(folder, config)
    if activation is None:
        kind, pooling = AutoModel, read_pooling(folder, Pooling.MEAN)
    else:  # the model's own head pools
        kind = AutoModelForSequenceClassification
        pooling = PoolingConfig(Pooling.FIRST, False, *input_limits(folder))
    if load_format is LoadFormat.DUMMY:
        torch.manual_seed(0)
        model = kind.from_config(config, dtype=dtype)
    else:
        model = _with_weights(kind, folder, config, dtype)
    return Encoder(model.eval().to(device), pooling, activation, device)


def _with_weights(kind: Any, folder: Path, config: Any, dtype: torch.dtype) -> Any:
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} has no weights: no .safetensors file is there")
    try:
        model, report = kind.from_pretrained(
            str(folder),
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"the weights in {folder} cannot be loaded: {error}") from error
    # Nothing reads the pooler of a model without a head, and many checkpoints leave it out.
    missing = sorted(
        name
        for name in report["missing_keys"]
        if kind is not AutoModel or not name.startswith("pooler.")
    )
    if missing:
        raise WeightsError(
            f"the weights in {folder} lack {len(missing)} tensors, among them {missing[0]}"
        )
    return model


def _cross_encoder_activation(folder: Path, config: Any) -> str | None:
    """The activation of a cross-encoder's scores; None for a model that embeds."""
    architecture = (config.architectures or [""])[0]
    if not architecture.endswith("ForSequenceClassification"):
        return None
    if config.num_labels != 1:
        raise UnsupportedModelError(
            f"{architecture} with {config.num_labels} labels is not supported; "
            "a cross-encoder has one label, the score"
        )
    name = _activation_name(folder, config).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"scores by {name!r} are not supported; supported are {', '.join(_ACTIVATIONS)}"
        )
    return name


def _activation_name(folder: Path, config: Any) -> str:
    path = folder / "config_sentence_transformers.json"
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = (
        (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
        or getattr(config, "sbert_ce_default_activation_function", None)
        or own.get("activation_fn")
    )
    return str(found or DEFAULT_ACTIVATION)


def _num_positions(model: Any) -> int:
    """The most tokens that the model has positions for."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa and its like count from the position after that of padding.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings) - first
    return int(model.config.max_position_embeddings)
