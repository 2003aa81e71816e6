"""Dense Llama network for training and for measuring without the engine; parameters carry Hugging Face names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama model with tied embeddings; the fields are named as in `config.json`."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048

    def hugging_face(self, bos_token_id: int, eos_token_id: int, pad_token_id: int) -> dict[str, Any]:
        """The content of `config.json` for `LlamaForCausalLM` with bfloat16 weights."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self),
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
        }


def rotary_tables(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (length, head_dim), halves repeated as in Hugging Face's `rotate_half`."""
    frequency = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x (batch, heads, length, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query causal self-attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        query, key = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, key, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, key, bias=False)
        self.o_proj = nn.Linear(query, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        size = (batch, length, -1, self.shape.head_dim)
        query = rotate(self.q_proj(x).view(size).transpose(1, 2), cos, sin)
        key = rotate(self.k_proj(x).view(size).transpose(1, 2), cos, sin)
        value = self.v_proj(x).view(size).transpose(1, 2)
        group = self.shape.num_attention_heads // self.shape.num_key_value_heads
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and the last norm: what Hugging Face keeps under `model.`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)

    def attention(self, index: int) -> Attention:
        """The attention of layer `index`."""
        return cast(Layer, self.layers[index]).self_attn


EMBEDDING_STD, FINAL_NORM = 0.3, 0.05
"""Embeddings as large as what a layer adds, or the first updates drown the tokens; the last norm evens the logits."""


def seed_induction(decoder: Decoder, shape: Shape, cos: Tensor, sin: Tensor) -> None:
    """Start with an induction circuit: a previous-token head in layer 0 and a matching head in layer 1.

    Training finds it by itself, late. Layer 0: every embedding has the same first coordinate, which queries and keys
    of the head read through the fast rotary frequencies, keys turned by one position, so that scores peak at distance
    one; the value is a projection of the token. Layer 1: queries project the present token in the same way, keys read
    what layer 0 wrote, both through the slow rotary frequencies, so that a match does not depend on distance.
    """
    size, half = shape.head_dim, shape.head_dim // 2
    fast = torch.zeros(size)
    fast[: min(6, half)] = 1.0
    slow = [i for i in range(size) if i % half >= half // 2]
    group = range(shape.num_attention_heads // shape.num_key_value_heads)
    first, second = (decoder.attention(index) for index in (0, 1))
    basis = torch.linalg.qr(torch.randn(shape.hidden_size - 1, 3 * size))[0].T
    token, written, copied = (torch.nn.functional.pad(part, (1, 0)) for part in basis.split(size))
    with torch.no_grad():
        decoder.embed_tokens.weight[:, 0] = 5 * EMBEDDING_STD
        first.k_proj.weight[:size, 0] = 0.9 * rotate(fast, cos[1], sin[1])
        for head in group:
            first.q_proj.weight[head * size : (head + 1) * size, 0] = 0.9 * fast
        first.v_proj.weight[:size] = token
        second.k_proj.weight[:size] = 0.0
        second.k_proj.weight[slow] = 2.0 * written[slow]
        second.v_proj.weight[:size] = copied
        for head in group:
            span = slice(head * size, (head + 1) * size)
            first.o_proj.weight[:, span] = 0.4 * written.T
            second.q_proj.weight[span] = 0.0
            second.q_proj.weight[[head * size + i for i in slow]] = 2.0 * token[slow]
            second.o_proj.weight[:, span] = 1.0 * copied.T


class Network(nn.Module):
    """Llama with tied embeddings."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.shape = shape
        self.model = Decoder(shape)
        self.cos, self.sin = rotary_tables(shape, shape.max_position_embeddings)
        residual = (2 * shape.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # Scores of unit variance at the start: with 0.02 attention is uniform and copying never forms.
                std = EMBEDDING_STD if "embed" in name else parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=std * residual if "o_proj" in name or "down_proj" in name else std)
        nn.init.constant_(self.model.norm.weight, FINAL_NORM)
        if shape.num_hidden_layers > 1:
            seed_induction(self.model, shape, self.cos, self.sin)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Normalised states (batch, length, hidden) of tokens (batch, length)."""
        x = self.model.embed_tokens(tokens)
        cos, sin = (table[: tokens.shape[1]].to(x.dtype) for table in (self.cos, self.sin))
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.model.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, length, vocab_size) of tokens (batch, length)."""
        return functional.linear(self.hidden(tokens), self.model.embed_tokens.weight)
