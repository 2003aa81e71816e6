"""The decoder of Llama (Touvron et al. 2023), Mistral, Qwen2 and Qwen3: RMSNorm, rotary attention with grouped
key/value heads, SwiGLU. What sets the families apart is data: `engine.models.config.FAMILIES`."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.reference import PagedTensor, paged_attention, store
from engine.layers.attention import AttentionInput
from engine.layers.linear import Linear
from engine.layers.norm import RMSNorm
from engine.layers.rotary import RotaryEmbedding, rotate
from engine.models.config import ModelConfig


class Weights(Protocol):
    """Where the decoder's tensors come from, on its device and in its compute dtype, each of the shape asked for."""

    def tensor(self, name: str, *shape: int) -> Tensor: ...

    def linear(self, names: tuple[str, ...], inputs: int, outputs: tuple[int, ...], bias: bool) -> Linear: ...


class Decoder:
    """Weights and the forward pass. `forward` writes the keys and values of its tokens into the pages it is given.

    max_len: positions [0, max_len) can be computed.
    """

    def __init__(self, config: ModelConfig, weights: Weights, max_len: int) -> None:
        self.config = config
        shape = (config.vocab_size, config.hidden)
        self.embedding = weights.tensor("model.embed_tokens.weight", *shape)
        head = self.embedding if config.tied_embeddings else weights.tensor("lm_head.weight", *shape)
        self.head = Linear([head], None, head.dtype)
        self.norm = RMSNorm(weights.tensor("model.norm.weight", config.hidden), config.norm_eps)
        self.rotary = RotaryEmbedding(
            config.rope, config.head_dim, max_len, self.embedding.device, self.embedding.dtype
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
        return self.head(hidden).float()


class _Block:
    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.scale = config.head_dim**-0.5
        hidden, width, mlp_width = config.hidden, config.heads * config.head_dim, config.intermediate
        kv_width = config.kv_heads * config.head_dim
        q, k, v, o = (f"{prefix}self_attn.{name}_proj" for name in "qkvo")
        gate, up, down = (f"{prefix}mlp.{name}_proj" for name in ("gate", "up", "down"))
        self.qkv = weights.linear((q, k, v), hidden, (width, kv_width, kv_width), config.qkv_bias)
        self.out = weights.linear((o,), width, (hidden,), config.out_bias)
        self.gate_up = weights.linear((gate, up), hidden, (mlp_width, mlp_width), config.mlp_bias)
        self.down = weights.linear((down,), mlp_width, (hidden,), config.mlp_bias)
        self.qk_norm = _qk_norm(config, weights, f"{prefix}self_attn.") if config.qk_norm else None
        self.norm = RMSNorm(weights.tensor(prefix + "input_layernorm.weight", hidden), config.norm_eps)
        self.mlp_norm = RMSNorm(weights.tensor(prefix + "post_attention_layernorm.weight", hidden), config.norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: AttentionInput, keys: PagedTensor, values: PagedTensor
    ) -> Tensor:
        rotated_heads = self.heads + self.kv_heads
        qkv = self.qkv(self.norm(x)).view(x.shape[0], rotated_heads + self.kv_heads, self.head_dim)
        qk = qkv[:, :rotated_heads]
        qk = rotate(qk if self.qk_norm is None else self.qk_norm(qk), cos, sin)
        store(keys, batch.slots, qk[:, self.heads :])
        store(values, batch.slots, qkv[:, rotated_heads:])
        attended = paged_attention(qk[:, : self.heads], keys, values, batch.groups, self.scale)
        x = x + self.out(attended.reshape(x.shape[0], -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def _qk_norm(config: ModelConfig, weights: Weights, prefix: str) -> RMSNorm:
    """The norms of the query heads and of the key heads as one."""
    q, k = (weights.tensor(f"{prefix}{name}_norm.weight", config.head_dim) for name in "qk")
    return RMSNorm(torch.cat((q.expand(config.heads, -1), k.expand(config.kv_heads, -1))), config.norm_eps)
