"""A checkpoint -> the decoder on its device, quantising on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint, RandomTensors
from engine.config import EngineConfig
from engine.kernels.operations import Operations
from engine.layers.linear import Linear, Weight
from engine.layers.quantization import quantize_int4, quantize_int8
from engine.models.config import ModelConfig
from engine.models.decoder import Decoder
from engine.models.quantization import Quantization
from engine.packed_weights import read_packed


def load_model(
    directory: Path,
    shape: ModelConfig,
    max_len: int,
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    operations: Operations,
) -> Decoder:
    """Load a Hugging Face checkpoint, or random weights. Raises ValueError naming the file or the setting."""
    precision = Precision.of(config, dtype)
    if config.load_format == "dummy":
        if shape.quantization is not None:
            raise ValueError(f"{directory}: quantization_config: load_format dummy imitates none; use weight_dtype")
        stored = StoredWeights(RandomTensors(config.seed, device), None, device, precision, operations)
        return Decoder(shape, stored, max_len, operations)
    if shape.quantization is not None and precision.bits:
        packed = f"{shape.quantization.format} in {shape.quantization.bits} bits"
        raise ValueError(f"weight_dtype: {directory} is {packed} already; use auto")
    stored = StoredWeights(Checkpoint(directory), shape.quantization, device, precision, operations)
    return Decoder(shape, stored, max_len, operations)


@dataclass(frozen=True, slots=True)
class Precision:
    """compute: dtype of activations, embeddings and norms. stored: dtype of dense linear weights.

    bits: 8 or 4 to quantise linear weights, 4 by groups of group_size inputs; 0 to store them dense; None: as they
    come.
    """

    compute: torch.dtype
    stored: torch.dtype
    bits: int | None
    group_size: int

    @staticmethod
    def of(config: EngineConfig, compute: torch.dtype) -> Precision:
        bits = {"auto": None, "int8": 8, "int4": 4}.get(config.weight_dtype, 0)
        stored = getattr(torch, config.weight_dtype) if bits == 0 else compute
        if stored.itemsize > compute.itemsize:
            raise ValueError(f"weight_dtype: {config.weight_dtype} is wider than the compute dtype; set dtype as well")
        return Precision(compute, stored, bits, config.weight_group_size)

    def store(self, name: str, weight: Tensor) -> Weight:
        """A dense matrix [out, in] in the form that is kept."""
        if self.bits == 8:
            return quantize_int8(weight)
        if self.bits == 4:
            if weight.shape[1] % self.group_size:
                raise ValueError(
                    f"weight_group_size: {self.group_size} does not divide the {weight.shape[1]} inputs of {name}"
                )
            return quantize_int4(weight, self.group_size)
        return weight.to(self.stored)


class StoredWeights:
    """The decoder's weights from a checkpoint; implements `engine.models.decoder.Weights`."""

    def __init__(
        self,
        checkpoint: Checkpoint | RandomTensors,
        packed: Quantization | None,
        device: torch.device,
        precision: Precision,
        operations: Operations,
    ) -> None:
        self._checkpoint = checkpoint
        self._packed = packed
        self._device = device
        self._precision = precision
        self._operations = operations

    def tensor(self, name: str, *shape: int) -> Tensor:
        return self._checkpoint.floating(name, *shape).to(self._device, self._precision.compute)

    def linear(self, names: tuple[str, ...], inputs: int, outputs: tuple[int, ...], bias: bool) -> Linear:
        parts = list(zip(names, outputs, strict=True))
        weights = [self._weight(name, size, inputs).to(self._device) for name, size in parts]
        biases = torch.cat([self.tensor(f"{name}.bias", size) for name, size in parts]) if bias else None
        return Linear(weights, biases, self._precision.compute, self._operations.product)

    def _weight(self, name: str, outputs: int, inputs: int) -> Weight:
        if self._packed is None or not self._packed.packs(name):
            return self._precision.store(name, self._checkpoint.floating(f"{name}.weight", outputs, inputs))
        assert isinstance(self._checkpoint, Checkpoint), "random tensors are never packed"
        packed = read_packed(self._checkpoint, self._packed, name, outputs, inputs)
        return packed if self._precision.bits is None else packed.dense(torch.float32).to(self._precision.stored)
