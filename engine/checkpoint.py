"""A checkpoint directory's safetensors files, read tensor by tensor and checked. No pickle, no remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.models.config import read_json

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

    def tensor(self, name: str, *shape: int) -> Tensor:
        """A tensor of any dtype as it is stored, of exactly this shape."""
        if name not in self._files:
            raise ValueError(f"{self.directory}: {name}: expected a tensor of shape {list(shape)}, but it is not there")
        path, opened = self._files[name]
        found = opened.get_slice(name).get_shape()
        if list(shape) != found:
            raise ValueError(f"{path}: {name}: expected shape {list(shape)}, found {found}")
        return opened.get_tensor(name)

    def floating(self, name: str, *shape: int) -> Tensor:
        """A tensor of float32, bfloat16 or float16, of exactly this shape."""
        tensor = self.tensor(name, *shape)
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{self._files[name][0]}: {name}: expected float32, bfloat16 or float16, found {dtype}")
        return tensor


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
