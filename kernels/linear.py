"""Linear layers; on CPUs with bfloat16 instructions their weights are packed once."""

from __future__ import annotations

import torch
from torch import Tensor

from trunkline.kernels.native import NativeLibrary, native_for

# kTileWidth in cpu/tile_product.h: columns of a panel.
PANEL_COLUMNS = 64
# Elements in a 32-bit word, which the kernel multiplies at once.
WORD_ELEMENTS = 2


class Linear:
    """x W^T + bias. Keeps either the weight as given or its packed form, not both."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Take over a weight.

        Args:
            weight: [num_columns, depth]
            bias: [num_columns]
        """
        self._bias = bias
        self._num_columns, self._depth = weight.shape
        self._library = _packing_library(weight)
        self._weight = weight if self._library is None else _packed(self._library, weight)

    def __call__(self, x: Tensor) -> Tensor:
        """[num_rows, num_columns] of x, [num_rows, depth]."""
        if self._library is None:
            return torch.nn.functional.linear(x, self._weight, self._bias)
        y = x.new_empty(len(x), self._num_columns)
        self._library.call(
            "linear",
            x.dtype,
            x.contiguous(),
            self._weight,
            self._bias,
            len(x),
            self._num_columns,
            self._depth,
            y,
            torch.get_num_threads(),
        )
        return y


def _packing_library(weight: Tensor) -> NativeLibrary | None:
    """The kernels, where packing pays: not for float32, whose products are as fast in PyTorch."""
    if weight.dtype != torch.bfloat16 or weight.shape[1] % WORD_ELEMENTS:
        return None
    return native_for(weight)


def _packed(library: NativeLibrary, weight: Tensor) -> Tensor:
    """[panels, depth words, PANEL_COLUMNS] int32, see cpu/linear.cpp."""
    num_columns, depth = weight.shape
    num_panels = -(-num_columns // PANEL_COLUMNS)
    packed = torch.empty(num_panels, depth // WORD_ELEMENTS, PANEL_COLUMNS, dtype=torch.int32)
    library.call(
        "pack_weight",
        weight.dtype,
        weight.contiguous(),
        num_columns,
        depth,
        packed,
        torch.get_num_threads(),
    )
    return packed
