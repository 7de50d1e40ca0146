"""One decoder for Llama, Mistral, Qwen2, Qwen3 and their like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trunkline.engine.kv_cache import KVCache
from trunkline.engine.model.config import ModelConfig
from trunkline.engine.model.layers import DecoderLayer, LayerWeights, RotaryTable
from trunkline.kernels.dispatch import AttentionPlan, ResidentAttention, add_rms_norm
from trunkline.kernels.linear import Linear


@dataclass(frozen=True)
class DecoderInputs:
    """The rows of one step."""

    token_ids: Tensor  # [num_rows] int64
    positions: Tensor  # [num_rows] int64, token position
    write_slots: Tensor  # [num_rows] int64, cache slot of each row
    attention: Mapping[int | None, AttentionPlan | ResidentAttention]  # by window
    # [num_wanted] int64, the rows whose hidden states are wanted; None: all. The last layer's
    # products are computed for these only.
    wanted_rows: Tensor | None


class Decoder:
    """The layers between token ids and logits. Holds weights, no state of any sequence."""

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor,
        layers: tuple[LayerWeights, ...],
        final_norm: Tensor,
        head: Tensor,
    ) -> None:
        """Take over the weights.

        Args:
            config: the model's shape.
            embedding: [vocab_size, hidden]; its dtype and device are those of the decoder.
            layers: one for each layer.
            final_norm: [hidden]
            head: [vocab_size, hidden]; the embedding itself when the model ties them.
        """
        self.config = config
        self.dtype = embedding.dtype
        self.device = embedding.device
        self.embedding = embedding
        self._layers = [
            DecoderLayer(config, weights, window)
            for weights, window in zip(layers, config.windows, strict=True)
        ]
        self._final_norm = final_norm
        self._head = Linear(head)
        self._rotary = RotaryTable(config, self.dtype, self.device)

    @torch.inference_mode()
    def hidden(self, inputs: DecoderInputs, cache: KVCache) -> Tensor:
        """Compute the rows but for the output layer, put their K and V into `cache`.

        Returns:
            [num_wanted, hidden] what the output layer takes.
        """
        angles = self._rotary.at(inputs.positions)
        delta = self.embedding.index_select(0, inputs.token_ids)
        residual: Tensor | None = None
        last = self._layers[-1]
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            delta, residual = layer.forward(
                delta,
                residual,
                angles,
                keys,
                values,
                inputs.write_slots,
                inputs.attention[layer.window],
                inputs.wanted_rows if layer is last else None,
            )
        assert residual is not None  # there is at least one layer
        normed, _ = add_rms_norm(delta, residual, self._final_norm, self.config.rms_norm_eps)
        return normed

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """[num_rows, vocab_size] of [num_rows, hidden]."""
        return self._head(hidden)
