"""RMSNorm (Zhang and Sennrich 2019), computed in float32 as the Llama family does."""

from __future__ import annotations

import torch
from torch import Tensor


class RMSNorm:
    """x / rms(x) * weight over the last dimension. weight: [hidden], or [heads, head_dim]."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)
