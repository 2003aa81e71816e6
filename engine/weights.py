"""A checkpoint -> the decoder on its device."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.layers.linear import Linear
from engine.models.config import ModelConfig
from engine.models.decoder import Decoder


def load_model(directory: Path, config: ModelConfig, max_len: int, device: torch.device, dtype: torch.dtype) -> Decoder:
    """Load a Hugging Face checkpoint. Raises ValueError naming the file and what is wrong with it."""
    return Decoder(config, _CheckpointWeights(Checkpoint(directory), device, dtype), max_len)


class _CheckpointWeights:
    """Implements `engine.models.decoder.Weights`."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self._checkpoint = checkpoint
        self._device = device
        self._dtype = dtype

    def tensor(self, name: str, *shape: int) -> Tensor:
        return self._checkpoint.floating(name, *shape).to(self._device, self._dtype)

    def linear(self, names: tuple[str, ...], inputs: int, outputs: tuple[int, ...], bias: bool) -> Linear:
        parts = list(zip(names, outputs, strict=True))
        weights = [self.tensor(f"{name}.weight", size, inputs) for name, size in parts]
        return Linear(weights, torch.cat([self.tensor(f"{name}.bias", size) for name, size in parts]) if bias else None)
