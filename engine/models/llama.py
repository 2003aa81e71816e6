"""Llama (Touvron et al. 2023): RMSNorm, rotary attention with grouped key/value heads, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.reference import PagedTensor, paged_attention, store
from engine.layers.attention import AttentionInput
from engine.layers.norm import RMSNorm
from engine.layers.rotary import RotaryEmbedding, rotate


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Shapes, from config.json. intermediate: SwiGLU width; max_positions: trained context in tokens."""

    vocab_size: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    max_positions: int
    tied_embeddings: bool

    @staticmethod
    def from_json(values: Mapping[str, Any], source: str) -> LlamaConfig:
        """Raises ValueError naming the key of config.json that this engine cannot serve."""
        if values.get("model_type") != "llama":
            raise ValueError(f"{source}: model_type: expected 'llama', given {values.get('model_type')!r}")
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        unsupported = {
            "hidden_act": values.get("hidden_act", "silu") != "silu",
            "attention_bias": bool(values.get("attention_bias")),
            "mlp_bias": bool(values.get("mlp_bias")),
            "rope type": rope.get("rope_type", rope.get("type", "default")) != "default",
            "quantization_config": "quantization_config" in values,
        }
        for key, present in unsupported.items():
            if present:
                raise ValueError(f"{source}: {key}: not supported by this engine")
        heads = values["num_attention_heads"]
        return LlamaConfig(
            vocab_size=values["vocab_size"],
            hidden=values["hidden_size"],
            intermediate=values["intermediate_size"],
            layers=values["num_hidden_layers"],
            heads=heads,
            kv_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            norm_eps=values["rms_norm_eps"],
            rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0),
            max_positions=values["max_position_embeddings"],
            tied_embeddings=bool(values.get("tie_word_embeddings", False)),
        )


class Llama:
    """Weights and the forward pass. `forward` writes the keys and values of its tokens into the pages it is given."""

    def __init__(self, config: LlamaConfig, weights: Mapping[str, Tensor]) -> None:
        self.config = config
        self.embedding = weights["model.embed_tokens.weight"]
        self.head = self.embedding if config.tied_embeddings else weights["lm_head.weight"]
        self.norm = RMSNorm(weights["model.norm.weight"], config.norm_eps)
        self.rotary = RotaryEmbedding(
            config.head_dim, config.max_positions, config.rope_theta, self.embedding.device, self.embedding.dtype
        )
        self.blocks = [_Block(config, weights, f"model.layers.{i}.") for i in range(config.layers)]

    def forward(self, batch: AttentionInput, cache: list[tuple[PagedTensor, PagedTensor]]) -> Tensor:
        """Hidden states [T, hidden] after the final norm; cache: keys and values of each layer."""
        x = self.embedding[batch.token_ids]
        cos, sin = self.rotary.at(batch.positions)
        for block, (keys, values) in zip(self.blocks, cache, strict=True):
            x = block.forward(x, cos, sin, batch, keys, values)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, vocab] in float32 from hidden states [N, hidden]."""
        return F.linear(hidden, self.head).float()


class _Block:
    def __init__(self, config: LlamaConfig, weights: Mapping[str, Tensor], prefix: str) -> None:
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.scale = config.head_dim**-0.5
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        # One product instead of three (and two): at small batches a step is bound by the number of operations.
        self.qkv = torch.cat([weights[f"{attention}{name}_proj.weight"] for name in ("q", "k", "v")])
        self.out = weights[attention + "o_proj.weight"]
        self.gate_up = torch.cat([weights[f"{mlp}{name}_proj.weight"] for name in ("gate", "up")])
        self.down = weights[mlp + "down_proj.weight"]
        self.norm = RMSNorm(weights[prefix + "input_layernorm.weight"], config.norm_eps)
        self.mlp_norm = RMSNorm(weights[prefix + "post_attention_layernorm.weight"], config.norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: AttentionInput, keys: PagedTensor, values: PagedTensor
    ) -> Tensor:
        rotated_heads = self.heads + self.kv_heads
        qkv = F.linear(self.norm(x), self.qkv).view(x.shape[0], rotated_heads + self.kv_heads, self.head_dim)
        qk = rotate(qkv[:, :rotated_heads], cos, sin)
        store(keys, batch.slots, qk[:, self.heads :])
        store(values, batch.slots, qkv[:, rotated_heads:])
        attended = paged_attention(qk[:, : self.heads], keys, values, batch.groups, self.scale)
        x = x + F.linear(attended.reshape(x.shape[0], -1), self.out)
        gate, up = F.linear(self.mlp_norm(x), self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)
