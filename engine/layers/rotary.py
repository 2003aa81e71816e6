"""Rotary position embedding (Su et al. 2021), the half-split layout of Hugging Face checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor


class RotaryEmbedding:
    """Tables of cos and sin for positions [0, max_positions). head_dim must be even."""

    def __init__(
        self, head_dim: int, max_positions: int, theta: float, device: torch.device, dtype: torch.dtype
    ) -> None:
        frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float64), frequencies)
        self.cos = torch.cat((angles.cos(), angles.cos()), -1).to(device, dtype)
        # The sign of the first half is folded in, so that a rotation is two products and a sum.
        self.sin = torch.cat((-angles.sin(), angles.sin()), -1).to(device, dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of `positions` [T], each [T, 1, head_dim]."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [T, heads, head_dim] by the tables of its positions."""
    return x * cos + torch.roll(x, x.shape[-1] // 2, -1) * sin
