"""x @ W.T + bias, several projections of the same input fused into one product where they are stored alike.

In bfloat16 on a CPU oneDNN multiplies blocks of weights in an order of its own. A plain matrix is rearranged anew in
every product, which at few rows costs as much as the product; so it is rearranged once, when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.layers.quantization import QuantizedWeight

Weight = Tensor | QuantizedWeight
"""[out, in]: dense, in the compute dtype or a narrower one, or quantised."""

BLOCKED_FOR_ROWS = 32
"""Rows that the order of the blocks is chosen for; it serves any number. 0 would leave the order plain."""


class Linear:
    """Projections side by side: the output is theirs, concatenated. bias: [sum of out]. dtype: of the input.

    product: x @ matrix.T for quantised weights.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        bias: Tensor | None,
        dtype: torch.dtype,
        product: Callable[[Tensor, QuantizedWeight], Tensor] = lambda x, weight: weight.product(x),
    ) -> None:
        # One product instead of three (and two): at small batches a step is bound by the number of operations.
        self.weights = [_blocked(w) if isinstance(w, Tensor) and w.dtype == dtype else w for w in _fused(weights)]
        self.bias = bias
        self._quantized_product = product

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, sum of out]."""
        first = self.weights[0]
        if len(self.weights) == 1 and isinstance(first, Tensor):
            return _dense_product(x, first, self.bias)
        parts = [self._product(x, weight) for weight in self.weights]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return y if self.bias is None else y + self.bias

    def _product(self, x: Tensor, weight: Weight) -> Tensor:
        return _dense_product(x, weight, None) if isinstance(weight, Tensor) else self._quantized_product(x, weight)

    def tensors(self) -> list[Tensor]:
        """All that is kept in memory."""
        weights = [t for w in self.weights for t in ([w] if isinstance(w, Tensor) else w.tensors())]
        return weights if self.bias is None else [*weights, self.bias]


def _blocked(weight: Tensor) -> Tensor:
    """A bfloat16 matrix on a CPU that multiplies such, in oneDNN's order; any other as it is."""
    if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, BLOCKED_FOR_ROWS)
    return weight


def _dense_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.is_mkldnn:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight if weight.dtype == x.dtype else weight.to(x.dtype), bias)


def _fused(weights: Sequence[Weight]) -> list[Weight]:
    runs: list[list[Weight]] = []
    for weight in weights:
        if runs and _alike(runs[-1][-1], weight):
            runs[-1].append(weight)
        else:
            runs.append([weight])
    return [run[0] if len(run) == 1 else _stacked(run) for run in runs]


def _alike(one: Weight, other: Weight) -> bool:
    if isinstance(one, QuantizedWeight) and isinstance(other, QuantizedWeight):
        return one.fuses_with(other)
    return isinstance(one, Tensor) and isinstance(other, Tensor)


def _stacked(run: list[Weight]) -> Weight:
    dense = [w for w in run if isinstance(w, Tensor)]
    if dense:
        return torch.cat(dense)
    packed = [w for w in run if isinstance(w, QuantizedWeight)]
    codes, scales = torch.cat([w.codes for w in packed]), torch.cat([w.scales for w in packed])
    zeros = [w.zeros for w in packed if w.zeros is not None]
    return QuantizedWeight(packed[0].bits, codes, scales, torch.cat(zeros) if zeros else None, packed[0].order)
