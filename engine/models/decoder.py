"""The decoder of Llama (Touvron et al. 2023), Mistral, Qwen2 and Qwen3: RMSNorm, rotary attention with grouped
key/value heads, SwiGLU. What sets the families apart is data: `engine.models.config.FAMILIES`."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.operations import Operations
from engine.kernels.reference import PagedTensor
from engine.layers.attention import AttentionInput
from engine.layers.linear import Linear
from engine.layers.norm import RMSNorm
from engine.layers.rotary import RotaryEmbedding
from engine.models.config import ModelConfig


class Weights(Protocol):
    """Where the decoder's tensors come from, on its device and in its compute dtype, each of the shape asked for."""

    def tensor(self, name: str, *shape: int) -> Tensor: ...

    def linear(self, names: tuple[str, ...], inputs: int, outputs: tuple[int, ...], bias: bool) -> Linear: ...


class Decoder:
    """Weights and the forward pass. `forward` writes the keys and values of its tokens into the pages it is given.

    max_len: positions [0, max_len) can be computed. operations: torch or kernels; batches come from its layout.
    """

    def __init__(self, config: ModelConfig, weights: Weights, max_len: int, operations: Operations) -> None:
        self.config = config
        self.operations = operations
        shape = (config.vocab_size, config.hidden)
        self.embedding = weights.tensor("model.embed_tokens.weight", *shape)
        head = self.embedding if config.tied_embeddings else weights.tensor("lm_head.weight", *shape)
        self.head = Linear([head], None, head.dtype)
        self.norm = RMSNorm(weights.tensor("model.norm.weight", config.hidden), config.norm_eps)
        self.rotary = RotaryEmbedding(
            config.rope, config.head_dim, max_len, self.embedding.device, self.embedding.dtype
        )
        self.blocks = [_Block(config, weights, f"model.layers.{i}.", operations) for i in range(config.layers)]

    def forward(self, batch: AttentionInput, cache: list[tuple[PagedTensor, PagedTensor]]) -> Tensor:
        """Hidden states [T, hidden] after the final norm; cache: keys and values of each layer."""
        x = F.embedding(batch.token_ids, self.embedding)
        angles = self.rotary.at(batch.positions)
        delta = None
        for block, (keys, values) in zip(self.blocks, cache, strict=True):
            x, delta = block.forward(x, delta, angles, batch, keys, values)
        return self.operations.add_norm(x, delta, self.norm)[1]

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, vocab] in float32 from hidden states [N, hidden]."""
        return self.head(hidden).float()


class _Block:
    def __init__(self, config: ModelConfig, weights: Weights, prefix: str, operations: Operations) -> None:
        self.operations = operations
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
        self,
        x: Tensor,
        delta: Tensor | None,
        angles: tuple[Tensor, Tensor],
        batch: AttentionInput,
        keys: PagedTensor,
        values: PagedTensor,
    ) -> tuple[Tensor, Tensor]:
        """The residual stream [T, hidden] and what is still to be added to it: the next norm does both in one pass."""
        ops = self.operations
        x, normed = ops.add_norm(x, delta, self.norm)
        qkv = self.qkv(normed).view(x.shape[0], self.heads + 2 * self.kv_heads, self.head_dim)
        query = ops.rotate_and_store(qkv, angles, batch.slots, self.qk_norm, keys, values)
        attended = ops.attend(query, keys, values, batch, self.scale)
        x, normed = ops.add_norm(x, self.out(attended.reshape(x.shape[0], -1)), self.mlp_norm)
        return x, self.down(ops.silu_mul(self.gate_up(normed)))


def _qk_norm(config: ModelConfig, weights: Weights, prefix: str) -> RMSNorm:
    """The norms of the query heads and of the key heads as one."""
    q, k = (weights.tensor(f"{prefix}{name}_norm.weight", config.head_dim) for name in "qk")
    return RMSNorm(torch.cat((q.expand(config.heads, -1), k.expand(config.kv_heads, -1))), config.norm_eps)
