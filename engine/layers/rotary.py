"""Rotary position embedding (Su et al. 2021), the half-split layout of Hugging Face checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.models.config import Rope


class RotaryEmbedding:
    """Tables of cos and sin for positions [0, positions). head_dim must be even."""

    def __init__(self, rope: Rope, head_dim: int, positions: int, device: torch.device, dtype: torch.dtype) -> None:
        angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies(rope, head_dim))
        self.cos = torch.cat((angles.cos(), angles.cos()), -1).to(device, dtype)
        # The sign of the first half is folded in, so that a rotation is two products and a sum.
        self.sin = torch.cat((-angles.sin(), angles.sin()), -1).to(device, dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of `positions` [T], each [T, 1, head_dim]."""
        return self.cos.index_select(0, positions).unsqueeze(1), self.sin.index_select(0, positions).unsqueeze(1)


def frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Radians per position of each rotary pair, [head_dim / 2] in float64.

    linear: all divided by the factor (Chen et al. 2023). llama3: wavelengths beyond the original context are divided
    by it, short ones kept, those between blended (Llama 3.1's reference code).
    """
    plain = rope.theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if rope.type != "llama3":
        return plain / rope.factor
    rotations = rope.original_max_positions * plain / (2 * math.pi)
    kept = (rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = kept.clamp(0, 1)
    return plain * kept + plain / rope.factor * (1 - kept)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [T, heads, head_dim] by the tables of its positions."""
    return torch.addcmul(x * cos, torch.roll(x, x.shape[-1] // 2, -1), sin)
