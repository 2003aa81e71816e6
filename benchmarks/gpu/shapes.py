"""Shapes of the models that are measured, with random weights, and what a step of them must read."""

from __future__ import annotations

from typing import Any

from engine.memory import BITS, page_bytes
from engine.models.config import ModelConfig
from engine.models.size import weight_bytes

_COMMON: dict[str, Any] = {
    "model_type": "llama", "rms_norm_eps": 1e-6, "head_dim": 128, "num_key_value_heads": 8,
    "max_position_embeddings": 40_960, "num_attention_heads": 32, "tie_word_embeddings": False, "rope_theta": 5e5,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": {
        **_COMMON, "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "tie_word_embeddings": True, "rope_theta": 1e6,
    },
    "Llama-3.2-1B": {
        **_COMMON, "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "head_dim": 64, "tie_word_embeddings": True,
    },
    "Llama-3-8B": {
        **_COMMON, "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    },
    "Llama-2-7B": {
        **_COMMON, "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "rope_theta": 1e4,
    },
    # A tenth of the bytes that the 7B reads in a step.
    "draft of the 7B": {
        **_COMMON, "vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 12,
        "num_attention_heads": 16, "num_key_value_heads": 4, "rope_theta": 1e4,
    },
}  # fmt: skip
"""As config.json has them; positions enough for every load here."""

TINY: dict[str, Any] = {
    "vocab_size": 10_240, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
"""What a rehearsal without a GPU changes of each."""


def weights_read(shape: ModelConfig, weight_dtype: str = "auto") -> int:
    """Bytes of weights that a decode step reads once each: all but an embedding that is not the head as well."""
    stored = weight_bytes(shape, "bfloat16", weight_dtype, 64, on_cpu=False)
    if shape.tied_embeddings:
        return stored
    return stored - shape.vocab_size * shape.hidden * BITS["bfloat16"] // 8


def kv_bytes(shape: ModelConfig, dtype: str = "bfloat16") -> int:
    """Bytes of keys and values of one token in all layers, scales included."""
    return 2 * shape.layers * page_bytes(dtype, 1, shape.kv_heads, shape.head_dim)
