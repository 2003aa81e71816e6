"""Bytes that a model's weights take, by arithmetic: for planning before anything is loaded. No tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.models.config import ModelConfig

FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SCALE_BYTES, ZERO_BYTES, ORDER_BYTES = 4, 1, 4


@dataclass(frozen=True, slots=True)
class Projection:
    """One linear layer [outputs, inputs], by the name of its tensors without ".weight"."""

    name: str
    outputs: int
    inputs: int
    bias: bool


def projections(config: ModelConfig) -> Iterator[Projection]:
    """Every linear layer of the decoder; the embedding and the head are none."""
    width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    for layer in range(config.layers):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        yield Projection(attention + "q_proj", width, config.hidden, config.qkv_bias)
        yield Projection(attention + "k_proj", kv_width, config.hidden, config.qkv_bias)
        yield Projection(attention + "v_proj", kv_width, config.hidden, config.qkv_bias)
        yield Projection(attention + "o_proj", config.hidden, width, config.out_bias)
        yield Projection(mlp + "gate_proj", config.intermediate, config.hidden, config.mlp_bias)
        yield Projection(mlp + "up_proj", config.intermediate, config.hidden, config.mlp_bias)
        yield Projection(mlp + "down_proj", config.hidden, config.intermediate, config.mlp_bias)


def weight_bytes(
    config: ModelConfig, dtype: str, weight_dtype: str, weight_group_size: int, on_cpu: bool = True
) -> int:
    """Bytes of all weights under EngineConfig's weight settings. dtype: the compute dtype, resolved (not "auto").

    Exact, but for packed checkpoints an upper bound: zero points that all turn out to be the middle are not kept, and
    layers that share an order keep it once. A CPU's blocked matrices (engine.layers.linear) are counted without the
    padding of odd sizes; a tied head is a table of its own there.
    """
    wide = FLOAT_BYTES[dtype]
    shared = config.tied_embeddings and not (on_cpu and dtype == "bfloat16")
    tables = (1 if shared else 2) * config.vocab_size * config.hidden
    norms = config.hidden + config.layers * (2 * config.hidden)
    if config.qk_norm:
        norms += config.layers * (config.heads + config.kv_heads) * config.head_dim
    total = wide * (tables + norms)
    for layer in projections(config):
        stored = _packed_bytes(config, layer) if weight_dtype == "auto" else None
        if stored is None:
            stored = _matrix_bytes(layer, dtype if weight_dtype == "auto" else weight_dtype, weight_group_size)
        total += stored + (wide * layer.outputs if layer.bias else 0)
    return total


def _matrix_bytes(layer: Projection, weight_dtype: str, group_size: int) -> int:
    count = layer.outputs * layer.inputs
    if weight_dtype == "int8":
        return count + SCALE_BYTES * layer.outputs
    if weight_dtype == "int4":
        return count // 2 + (SCALE_BYTES + ZERO_BYTES) * count // group_size
    return count * FLOAT_BYTES[weight_dtype]


def _packed_bytes(config: ModelConfig, layer: Projection) -> int | None:
    """As the checkpoint packs the layer, or None where it does not."""
    packed = config.quantization
    if packed is None or not packed.packs(layer.name):
        return None
    per_group = SCALE_BYTES + (0 if packed.symmetric else ZERO_BYTES)
    codes = layer.outputs * layer.inputs * packed.bits // 8
    order = ORDER_BYTES * layer.inputs if packed.reordered else 0
    return codes + per_group * layer.outputs * packed.groups(layer.inputs) + order
