"""One decoder for Llama, Mistral, Qwen2, Qwen3 and their like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trunkline.engine.kv_cache import KVCache
from trunkline.engine.model.config import ModelConfig
from trunkline.engine.model.layers import DecoderLayer, LayerWeights, RotaryTable
from trunkline.kernels.dispatch import AttentionPlan, add_rms_norm
from trunkline.kernels.linear import Linear


@dataclass(frozen=True)
class DecoderInputs:
    """The rows of one step."""

    token_ids: Tensor  # [num_rows] int64
    positions: Tensor  # [num_rows] int64, token position
    write_slots: Tensor  # [num_rows] int64, cache slot of each row
    attention: Mapping[int | None, AttentionPlan]  # by window
    logit_rows: Tensor  # [num_logit_rows] int64, the rows whose logits are wanted


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
        self._embedding = embedding
        self._layers = [
            DecoderLayer(config, weights, window)
            for weights, window in zip(layers, config.windows, strict=True)
        ]
        self._final_norm = final_norm
        self._head = Linear(head)
        self._rotary = RotaryTable(config, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, inputs: DecoderInputs, cache: KVCache) -> Tensor:
        """Compute the rows, put their K and V into `cache`.

        Returns:
            [num_logit_rows, vocab_size] logits in the decoder's dtype.
        """
        angles = self._rotary.at(inputs.positions)
        delta = self._embedding.index_select(0, inputs.token_ids)
        residual: Tensor | None = None
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            delta, residual = layer.forward(
                delta,
                residual,
                angles,
                keys,
                values,
                inputs.write_slots,
                inputs.attention[layer.window],
            )
        assert residual is not None  # there is at least one layer
        rows = inputs.logit_rows
        normed, _ = add_rms_norm(
            delta.index_select(0, rows),
            residual.index_select(0, rows),
            self._final_norm,
            self.config.rms_norm_eps,
        )
        return self._head(normed)
