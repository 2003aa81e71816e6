"""A checkpoint directory's safetensors files, read tensor by tensor and checked. No pickle, no remote code."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.models.config import read_json

RANDOM_STD = 0.02
"""As most configs have for initializer_range."""
INDEX = "model.safetensors.index.json"


class Checkpoint:
    """Tensors by name. Raises ValueError (one line: file, tensor, expected) for what is missing, torn or misshapen."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, tuple[Path, Any]] = {}
        for path in _shards(directory):
            try:
                opened = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path}: not a whole safetensors file: {error}") from None
            self._files.update(dict.fromkeys(opened.keys(), (path, opened)))

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def floating(self, name: str, *shape: int) -> Tensor:
        """A tensor of float32, bfloat16 or float16, of exactly this shape."""
        return self._tensor(name, (torch.float32, torch.bfloat16, torch.float16), shape)

    def typed(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """A tensor of exactly this dtype and shape."""
        return self._tensor(name, (dtype,), shape)

    def _tensor(self, name: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]) -> Tensor:
        if name not in self._files:
            raise ValueError(f"{self.directory}: {name}: expected a tensor of shape {list(shape)}, but it is not there")
        path, opened = self._files[name]
        found = opened.get_slice(name).get_shape()
        if list(shape) != found:
            raise ValueError(f"{path}: {name}: expected shape {list(shape)}, found {found}")
        tensor: Tensor = opened.get_tensor(name)
        if tensor.dtype not in dtypes:
            expected = " or ".join(map(_dtype_name, dtypes))
            raise ValueError(f"{path}: {name}: expected {expected}, found {_dtype_name(tensor.dtype)}")
        return tensor


class RandomTensors:
    """Stands in for a checkpoint that is not there: matrices by the seed and the tensor's name, norms 1, biases 0.

    Drawn on `device`, each kind by its own generator: a CPU takes a minute for 8 billion numbers, a GPU a second.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._device = device

    def floating(self, name: str, *shape: int) -> Tensor:
        """Of any shape, in float32."""
        if len(shape) == 1:
            return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, device=self._device)
        generator = torch.Generator(self._device).manual_seed(self._seed ^ zlib.crc32(name.encode()))
        return torch.randn(shape, generator=generator, device=self._device).mul_(RANDOM_STD)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shards(directory: Path) -> list[Path]:
    """The files that the index names, or every *.safetensors file where there is no index."""
    index = directory / INDEX
    if not index.is_file():
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{directory}: no *.safetensors file (pickled checkpoints are not read)")
        return files
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: weight_map: expected an object of tensor names and files")
    files = sorted({directory / str(name) for name in names.values()})
    for file in files:
        if not file.is_file():
            raise ValueError(f"{index}: weight_map: names {file.name}, which is not there")
    return files
