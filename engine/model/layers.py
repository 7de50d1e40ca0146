"""The parts of a decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trunkline.engine.model.config import ModelConfig
from trunkline.kernels.dispatch import (
    AttentionPlan,
    ResidentAttention,
    add_rms_norm,
    paged_attention,
    rms_norm,
    rope_and_cache,
)
from trunkline.kernels.linear import GatedLinear, Linear


@dataclass(frozen=True)
class LayerWeights:
    """One layer's tensors. q, k and v are one product, gate and up another."""

    input_norm: Tensor  # [hidden]
    qkv: Tensor  # [(num_heads + 2 * num_kv_heads) * head_dim, hidden]
    qkv_bias: Tensor | None  # [(num_heads + 2 * num_kv_heads) * head_dim]
    # Over the heads of q, then of k, [num_heads + num_kv_heads, head_dim].
    qk_norm: Tensor | None
    output: Tensor  # [hidden, num_heads * head_dim]
    output_bias: Tensor | None  # [hidden]
    mlp_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2 * intermediate, hidden]
    gate_up_bias: Tensor | None  # [2 * intermediate]
    down: Tensor  # [hidden, intermediate]
    down_bias: Tensor | None  # [hidden]


@dataclass(frozen=True)
class RowAngles:
    """Cosine and sine of the rotary embedding of each row's position, for all layers."""

    cos: Tensor  # [num_rows, 1, head_dim]
    signed_sin: Tensor  # [num_rows, 1, head_dim] negated in the first half


class RotaryTable:
    """Angles of every position up to the model's context, computed in float32."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        inv_freq = torch.tensor(config.rope_inv_freq, dtype=torch.float32)
        positions = torch.arange(config.max_context_tokens, dtype=torch.float32)
        angles = positions.unsqueeze(1) * inv_freq
        cos, sin = angles.cos() * config.rope_amplitude, angles.sin() * config.rope_amplitude
        self._cos = torch.cat([cos, cos], 1).unsqueeze(1).to(device, dtype)
        self._signed_sin = torch.cat([-sin, sin], 1).unsqueeze(1).to(device, dtype)

    def at(self, positions: Tensor) -> RowAngles:
        """The angles of `positions`, [num_rows]."""
        return RowAngles(
            self._cos.index_select(0, positions), self._signed_sin.index_select(0, positions)
        )


class DecoderLayer:
    """Attention and MLP, each after a norm, each added to the residual stream."""

    def __init__(self, config: ModelConfig, weights: LayerWeights, window: int | None) -> None:
        self.window = window
        self._input_norm = weights.input_norm
        self._qkv = Linear(weights.qkv, weights.qkv_bias)
        self._qk_norm = weights.qk_norm
        self._output = Linear(weights.output, weights.output_bias)
        self._mlp_norm = weights.mlp_norm
        self._gate_up = GatedLinear(weights.gate_up, weights.gate_up_bias)
        self._down = Linear(weights.down, weights.down_bias)
        self._eps = config.rms_norm_eps
        self._num_kv_heads = config.num_kv_heads
        self._head_dim = config.head_dim
        self._scale = config.head_dim**-0.5

    def forward(
        self,
        delta: Tensor,
        residual: Tensor | None,
        angles: RowAngles,
        key_cache: Tensor,
        value_cache: Tensor,
        write_slots: Tensor,
        attention: AttentionPlan | ResidentAttention,
        wanted_rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Compute all rows; their K and V are in the cache afterwards.

        Args:
            delta: [num_rows, hidden] what the previous layer adds to the residual stream.
            residual: [num_rows, hidden] the stream so far; None: `delta` starts it.
            angles: of the rows' positions.
            key_cache: [num_pages, page_size, num_kv_heads, head_dim], written to.
            value_cache: like `key_cache`.
            write_slots: [num_rows] cache slot of each row.
            attention: the step's attention for this layer's window.
            wanted_rows: [num_wanted] int64, the rows that are returned; None: all.

        Returns:
            (delta, residual) for the next layer.
        """
        if residual is None:
            normed, residual = rms_norm(delta, self._input_norm, self._eps), delta
        else:
            normed, residual = add_rms_norm(delta, residual, self._input_norm, self._eps)

        query = rope_and_cache(
            self._qkv(normed).view(len(normed), -1, self._head_dim),
            self._num_kv_heads,
            self._qk_norm,
            self._eps,
            angles.cos,
            angles.signed_sin,
            key_cache,
            value_cache,
            write_slots,
        )
        attended = paged_attention(query, key_cache, value_cache, attention, self._scale)
        if wanted_rows is not None:
            attended = attended.index_select(0, wanted_rows)
            residual = residual.index_select(0, wanted_rows)
        delta = self._output(attended.flatten(1))

        normed, residual = add_rms_norm(delta, residual, self._mlp_norm, self._eps)
        return self._down(self._gate_up(normed)), residual
