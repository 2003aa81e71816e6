"""x @ W.T + bias, several projections of the same input fused into one product where they are stored alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """Projections side by side: the output is theirs, concatenated. weights: [out, in] each; bias: [sum of out]."""

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None) -> None:
        # One product instead of three (and two): at small batches a step is bound by the number of operations.
        self.weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, sum of out]."""
        return F.linear(x, self.weight, self.bias)
