"""Linear layers that others packed: GPTQ, AWQ and compressed-tensors, unpacked into our own layout while loading.

Formats as published: GPTQ by AutoGPTQ and GPTQModel, AWQ by AutoAWQ (GEMM), compressed-tensors by vLLM's library.
int-quantized holds int8; all others hold codes of 32 / bits consecutive numbers in an int32, the first in the lowest
bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.layers.quantization import QuantizedWeight, pack
from engine.models.quantization import Quantization

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Column j of eight lies at nibble AWQ_ORDER[j]; written as nibbles of the columns 0 2 4 6 1 3 5 7."""


def read_packed(checkpoint: Checkpoint, scheme: Quantization, name: str, outputs: int, inputs: int) -> QuantizedWeight:
    """The layer `name` [outputs, inputs]. Raises ValueError naming the file, the tensor and what was expected."""
    source = f"{checkpoint.directory}: {name}"
    if scheme.group_size is not None and inputs % scheme.group_size:
        raise ValueError(f"{source}: group_size: {scheme.group_size} does not divide the layer's {inputs} inputs")
    per_word = 32 // scheme.bits
    if scheme.format != "int-quantized" and (inputs % per_word or outputs % per_word):
        raise ValueError(f"{source}: expected shape in multiples of {per_word}, found {[outputs, inputs]}")
    read = {"gptq": _gptq, "awq": _awq, "pack-quantized": _pack_quantized, "int-quantized": _int_quantized}
    return read[scheme.format](checkpoint, scheme, name, outputs, inputs)


def _gptq(checkpoint: Checkpoint, scheme: Quantization, name: str, outputs: int, inputs: int) -> QuantizedWeight:
    bits, groups, per_word = scheme.bits, scheme.groups(inputs), 32 // scheme.bits
    codes = _unpack(checkpoint.typed(f"{name}.qweight", torch.int32, inputs // per_word, outputs).T, bits)
    zeros = _unpack(checkpoint.typed(f"{name}.qzeros", torch.int32, groups, outputs // per_word), bits)
    # Zero points are numbers modulo 2^bits: one of 0 is stored as 2^bits - 1 in the first format.
    zeros = (zeros + scheme.zero_offset) & ((1 << bits) - 1)
    scales = checkpoint.floating(f"{name}.scales", groups, outputs).T
    order = _order(checkpoint, scheme, name, inputs)
    if order is not None:
        codes = codes[:, order]
    return pack(bits, codes, scales, zeros.T, order)


def _order(checkpoint: Checkpoint, scheme: Quantization, name: str, inputs: int) -> Tensor | None:
    """Inputs group by group, or None where they come in order."""
    if not scheme.reordered and f"{name}.g_idx" not in checkpoint:
        return None
    group_of = checkpoint.typed(f"{name}.g_idx", torch.int32, inputs)
    groups = scheme.groups(inputs)
    if group_of.min() < 0 or not torch.equal(group_of.bincount(), torch.full((groups,), inputs // groups)):
        raise ValueError(
            f"{checkpoint.directory}: {name}.g_idx: expected {inputs // groups} inputs in each of {groups} groups"
        )
    order = torch.argsort(group_of, stable=True).int()
    return None if torch.equal(order, torch.arange(inputs, dtype=torch.int32)) else order


def _awq(checkpoint: Checkpoint, scheme: Quantization, name: str, outputs: int, inputs: int) -> QuantizedWeight:
    groups = scheme.groups(inputs)

    def columns(tensor: str, rows: int) -> Tensor:
        words = _unpack(checkpoint.typed(f"{name}.{tensor}", torch.int32, rows, outputs // 8), 4)
        return words.view(rows, -1, 8)[..., AWQ_ORDER].reshape(rows, outputs).T

    scales = checkpoint.floating(f"{name}.scales", groups, outputs).T
    return pack(4, columns("qweight", inputs), scales, columns("qzeros", groups))


def _pack_quantized(
    checkpoint: Checkpoint, scheme: Quantization, name: str, outputs: int, inputs: int
) -> QuantizedWeight:
    bits, groups, per_word = scheme.bits, scheme.groups(inputs), 32 // scheme.bits
    codes = _unpack(checkpoint.typed(f"{name}.weight_packed", torch.int32, outputs, inputs // per_word), bits)
    scales = checkpoint.floating(f"{name}.weight_scale", outputs, groups)
    zeros = None
    if not scheme.symmetric:
        zeros = _unpack(
            checkpoint.typed(f"{name}.weight_zero_point", torch.int32, outputs // per_word, groups).T, bits
        ).T
    return pack(bits, codes, scales, zeros)


def _int_quantized(
    checkpoint: Checkpoint, scheme: Quantization, name: str, outputs: int, inputs: int
) -> QuantizedWeight:
    groups = scheme.groups(inputs)
    scales = checkpoint.floating(f"{name}.weight_scale", outputs, groups).float()
    zeros = None if scheme.symmetric else checkpoint.typed(f"{name}.weight_zero_point", torch.int8, outputs, groups)
    zeros = None if zeros is None or not zeros.any() else zeros
    return QuantizedWeight(8, checkpoint.typed(f"{name}.weight", torch.int8, outputs, inputs), scales, zeros)


def _unpack(words: Tensor, bits: int) -> Tensor:
    """int32 [rows, words] -> int32 [rows, words * 32 / bits], each below 2^bits."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(1)
