"""Writes quantised checkpoints as other tools do, from the published formats and in numpy: nothing of the engine's."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Array = NDArray[Any]
Tensors = dict[str, Array]


@dataclass(frozen=True)
class Codes:
    """A quantised matrix: unsigned codes [out, in]; scales and zeros [out, groups]; group of each input [in]."""

    bits: int
    codes: Array
    scales: Array
    zeros: Array
    group_of: Array

    @property
    def dense(self) -> Array:
        scales = self.scales.astype(np.float32)[:, self.group_of]
        return (self.codes - self.zeros[:, self.group_of]).astype(np.float32) * scales


def quantise(weight: Array, bits: int, group: int, symmetric: bool, shuffled_by: str | None = None) -> Codes:
    """Round to nearest, by groups of inputs that are shuffled when `shuffled_by` is given."""
    inputs = weight.shape[1]
    order = np.arange(inputs)
    if shuffled_by is not None:
        order = np.random.default_rng(zlib.crc32(shuffled_by.encode())).permutation(inputs)
    group_of = np.empty(inputs, np.int32)
    group_of[order] = np.arange(inputs) // group
    parts = weight[:, order].reshape(len(weight), -1, group)
    top = 2**bits - 1
    if symmetric:
        scales = np.abs(parts).max(-1) / (2 ** (bits - 1) - 1)
        zeros = np.full(scales.shape, 2 ** (bits - 1))
    else:
        parts[:2] = np.abs(parts[:2])  # rows whose zero point is 0
        low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
        scales = (high - low) / top
        zeros = np.round(-low / scales)
    scales = scales.astype(np.float16)
    codes = np.clip(np.round(parts / scales[..., None].astype(np.float32)) + zeros[..., None], 0, top)
    unshuffled = np.empty(weight.shape, np.int64)
    unshuffled[:, order] = codes.reshape(weight.shape)
    return Codes(bits, unshuffled, scales, zeros.astype(np.int64), group_of)


def words(codes: Array, bits: int) -> Array:
    """int32 [rows, n * bits / 32]: the first code in the lowest bits."""
    per_word = 32 // bits
    packed = np.zeros((codes.shape[0], codes.shape[1] // per_word), np.uint32)
    for column in range(codes.shape[1]):
        packed[:, column // per_word] |= codes[:, column].astype(np.uint32) << np.uint32(bits * (column % per_word))
    return packed.view(np.int32)


def gptq(q: Codes, zero_offset: int) -> Tensors:
    stored_zeros = (q.zeros - zero_offset) % 2**q.bits
    return {
        "qweight": words(q.codes, q.bits).T,
        "qzeros": words(stored_zeros.T, q.bits),
        "scales": q.scales.T,
        "g_idx": q.group_of,
    }


def awq(q: Codes) -> Tensors:
    def interleaved(columns: Array) -> Array:
        """Nibbles 0 ... 7 of a word hold its columns 0 2 4 6 1 3 5 7."""
        eights = columns.reshape(columns.shape[0], -1, 8)
        return words(np.stack([eights[..., i] for i in (0, 2, 4, 6, 1, 3, 5, 7)], -1).reshape(columns.shape), 4)

    return {"qweight": interleaved(q.codes.T), "qzeros": interleaved(q.zeros.T), "scales": q.scales.T}


def pack_quantized(q: Codes, symmetric: bool) -> Tensors:
    tensors = {
        "weight_packed": words(q.codes, q.bits),
        "weight_scale": q.scales,
        "weight_shape": np.array(q.codes.shape, np.int64),
    }
    return tensors if symmetric else {**tensors, "weight_zero_point": words(q.zeros.T, q.bits).T}


def int_quantized(q: Codes, symmetric: bool) -> Tensors:
    tensors = {"weight": (q.codes - 128).astype(np.int8), "weight_scale": q.scales}
    return tensors if symmetric else {**tensors, "weight_zero_point": (q.zeros - 128).astype(np.int8)}


def write_packed(
    source: Path, target: Path, config: dict[str, Any], pack: Callable[[str, Array], tuple[Tensors, Array] | None]
) -> tuple[Path, Path]:
    """The checkpoint `source` packed, and its dense twin with what the codes mean, as directories under `target`.

    pack: from a linear layer's name and matrix to its packed tensors and dense twin; None leaves it dense.
    """
    packed: Tensors = {}
    dense: Tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        found = pack(layer, tensor) if layer.endswith("_proj") else None
        if found is None:
            packed[name] = dense[name] = tensor
        else:
            packed |= {f"{layer}.{key}": np.ascontiguousarray(value) for key, value in found[0].items()}
            dense[name] = np.ascontiguousarray(found[1])
    for directory, tensors in ((target / "packed", packed), (target / "dense", dense)):
        shutil.copytree(source, directory)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    file = target / "packed" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": config}))
    return target / "packed", target / "dense"
