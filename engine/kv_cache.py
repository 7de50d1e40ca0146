"""The paged KV cache: its size in bytes, its tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trunkline.engine.model.config import ModelConfig


@dataclass(frozen=True)
class KVCache:
    """Keys and values of all layers, in pages."""

    keys: tuple[Tensor, ...]  # per layer [num_pages, page_size, num_kv_heads, head_dim]
    values: tuple[Tensor, ...]  # like keys

    @property
    def num_pages(self) -> int:
        return self.keys[0].shape[0]

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        return self.keys[0].shape[1]


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of K and V of one token over all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize


def num_pages_for(
    config: ModelConfig, dtype: torch.dtype, page_size: int, budget_bytes: int
) -> int:
    """How many pages of `page_size` tokens fit in `budget_bytes`.

    Raises:
        ValueError: not even one does.
    """
    page_bytes = page_size * kv_bytes_per_token(config, dtype)
    num_pages = budget_bytes // page_bytes
    if num_pages < 1:
        raise ValueError(
            f"a KV cache of {budget_bytes} bytes cannot hold one page: "
            f"{page_size} tokens take {page_bytes} bytes"
        )
    return num_pages


def allocate_kv_cache(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, num_pages: int, page_size: int
) -> KVCache:
    """A cache of `num_pages` pages. The system maps memory to a page when it is first written."""
    shape = (num_pages, page_size, config.num_kv_heads, config.head_dim)
    keys = tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers))
    values = tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers))
    return KVCache(keys, values)
