"""Linear layers; on CPUs with bfloat16 instructions their weights are packed once."""

from __future__ import annotations

import torch
from torch import Tensor

from trunkline.kernels.dispatch import silu_mul
from trunkline.kernels.native import NativeLibrary, native_for

# kTileWidth in cpu/tile_product.h: columns of a panel.
PANEL_COLUMNS = 64
# Columns of the gate in a panel of a gated product.
GATE_COLUMNS = PANEL_COLUMNS // 2
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
        self._library = _packing_library(weight)
        if self._library is None:
            self._weight, self._bias = weight, bias
        else:
            self._product = _PackedProduct(self._library, "linear", weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """[num_rows, num_columns] of x, [num_rows, depth]."""
        if self._library is None:
            return torch.nn.functional.linear(x, self._weight, self._bias)
        return self._product(x, self._product.num_columns)


class GatedLinear:
    """silu(gate) * up of a product whose columns are those of the gate, then those of up."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Take over a weight.

        Args:
            weight: [2 * size, depth], the gate's rows first.
            bias: [2 * size]
        """
        self._size = len(weight) // 2
        self._library = None if self._size % GATE_COLUMNS else _packing_library(weight)
        if self._library is None:
            self._linear = Linear(weight, bias)
        else:
            bias = None if bias is None else _interleaved(bias)
            self._product = _PackedProduct(
                self._library, "gated_linear", _interleaved(weight), bias
            )

    def __call__(self, x: Tensor) -> Tensor:
        """[num_rows, size] of x, [num_rows, depth]."""
        if self._library is None:
            return silu_mul(self._linear(x))
        return self._product(x, self._size)


class _PackedProduct:
    """A weight in the layout of cpu/linear.cpp, and the function there that takes it."""

    def __init__(
        self, library: NativeLibrary, operation: str, weight: Tensor, bias: Tensor | None
    ) -> None:
        self._library = library
        self._operation = operation
        self.num_columns, self._depth = weight.shape
        self._packed = _packed(library, weight)
        self._bias = bias

    def __call__(self, x: Tensor, size: int) -> Tensor:
        """[num_rows, size]"""
        y = x.new_empty(len(x), size)
        self._library.call(
            self._operation,
            x.dtype,
            x.contiguous(),
            self._packed,
            self._bias,
            len(x),
            self.num_columns,
            self._depth,
            y,
            torch.get_num_threads(),
        )
        return y


def _interleaved(tensor: Tensor) -> Tensor:
    """The halves of the first dimension in turn, GATE_COLUMNS of each: a panel has both."""
    halves = tensor.view(2, -1, GATE_COLUMNS, *tensor.shape[1:])
    return halves.transpose(0, 1).reshape(tensor.shape)


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
