"""RMSNorm (Zhang and Sennrich 2019), computed in float32 as the Llama family does."""

from __future__ import annotations

import torch
from torch import Tensor


class RMSNorm:
    """x / rms(x) * weight over the last dimension. weight: [hidden], or [heads, head_dim]."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps
        self._root_eps = torch.tensor(eps**0.5, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        # sqrt(mean(x^2) + eps) as the hypotenuse of rms(x) and sqrt(eps): six operations instead of nine.
        rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).mul_(x.shape[-1] ** -0.5)
        return (x / rms.hypot_(self._root_eps)).mul_(self.weight).to(x.dtype)
