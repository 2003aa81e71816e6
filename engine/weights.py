"""safetensors -> a model on its device. No pickle, no remote code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from engine.models.llama import Llama, LlamaConfig


def load_model(directory: Path, device: torch.device, dtype: torch.dtype) -> Llama:
    """Load a Hugging Face checkpoint directory. Raises ValueError naming the file and what is wrong with it."""
    source = directory / "config.json"
    try:
        config = LlamaConfig.from_json(_read_json(source), str(source))
    except KeyError as error:
        raise ValueError(f"{source}: {error.args[0]}: expected, but not there") from None
    weights = {name: tensor.to(device, dtype) for name, tensor in _read_tensors(directory).items()}
    try:
        return Llama(config, weights)
    except KeyError as error:
        raise ValueError(f"{directory}: the checkpoint lacks the tensor {error.args[0]}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: line {error.lineno}: {error.msg}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object, found {type(values).__name__}")
    return values


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{directory}: no *.safetensors file (pickled checkpoints are not read)")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors.update(load_file(file))
        except SafetensorError as error:
            raise ValueError(f"{file}: not a safetensors file: {error}") from None
    return tensors
