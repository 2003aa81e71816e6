"""ModelConfig: what config.json says of the architectures served, and refusals of what is not. No tensors here."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.models.quantization import Quantization, parse_quantization

Biases = Literal["never", "qkv", "attention_bias"]
Windows = Literal["never", "sliding_window", "use_sliding_window"]


@dataclass(frozen=True, slots=True)
class Family:
    """What one model_type does differently from Llama; the rest of the decoder is the same.

    biases: of the attention's projections; "attention_bias" where that key decides for q, k, v and o.
    qk_norm: RMSNorm over each query and key head before the rotation. head_dim: where config.json has none.
    windows: which key limits attention to the last `sliding_window` tokens.
    """

    biases: Biases
    qk_norm: bool = False
    head_dim: int | None = None
    windows: Windows = "never"


FAMILIES: dict[str, Family] = {
    "llama": Family(biases="attention_bias"),
    "mistral": Family(biases="never", windows="sliding_window"),
    "qwen2": Family(biases="qkv", windows="use_sliding_window"),
    "qwen3": Family(biases="attention_bias", qk_norm=True, head_dim=128, windows="use_sliding_window"),
}
DEFAULT_WINDOW = 4096
MAX_WINDOW_LAYERS = 28
DEFAULT_THETA = 10_000.0
"""What transformers assumes where config.json has no sliding_window, max_window_layers or rope_theta."""

ROPE_TYPES = ("default", "linear", "llama3")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding. theta: base. factor: context extension; 1 for type "default".

    low_freq_factor, high_freq_factor, original_max_positions (tokens): of type "llama3" alone.
    """

    type: str = "default"
    theta: float = DEFAULT_THETA
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes. intermediate: SwiGLU width; max_positions: trained context in tokens; window: tokens that any query
    sees, itself included, or None. Biases of q, k and v, of o, and of the three MLP projections. quantization: how the
    checkpoint packs its linear layers, None where it does not."""

    vocab_size: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    max_positions: int
    tied_embeddings: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    window: int | None
    quantization: Quantization | None = None

    @staticmethod
    def from_json(values: Mapping[str, Any], source: str) -> ModelConfig:
        """Raises ValueError (one line) naming the key of config.json that this engine cannot serve."""
        keys = _Keys(values, source)
        family = _family(keys)
        if values.get("hidden_act", "silu") != "silu":
            raise keys.error("hidden_act", f"expected 'silu', given {values['hidden_act']!r}")
        heads, layers = keys.positive("num_attention_heads"), keys.positive("num_hidden_layers")
        kv_heads = keys.positive("num_key_value_heads", heads)
        if heads % kv_heads:
            raise keys.error("num_key_value_heads", f"{kv_heads} does not divide num_attention_heads {heads}")
        max_positions = keys.positive("max_position_embeddings")
        biases = bool(values.get("attention_bias")) if family.biases == "attention_bias" else False
        return ModelConfig(
            vocab_size=keys.positive("vocab_size"),
            hidden=keys.positive("hidden_size"),
            intermediate=keys.positive("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=keys.even("head_dim", family.head_dim or keys.positive("hidden_size") // heads),
            norm_eps=keys.number("rms_norm_eps"),
            rope=_rope(keys, max_positions),
            max_positions=max_positions,
            tied_embeddings=bool(values.get("tie_word_embeddings", False)),
            qkv_bias=biases or family.biases == "qkv",
            out_bias=biases,
            mlp_bias=bool(values.get("mlp_bias", False)),
            qk_norm=family.qk_norm,
            window=_window(keys, family, layers),
            quantization=_quantization(keys),
        )


def read_model_config(directory: Path) -> ModelConfig:
    """Parse config.json of a checkpoint directory. Raises ValueError (one line) naming the file and the key."""
    path = directory / "config.json"
    return ModelConfig.from_json(read_json(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: line {error.lineno}: {error.msg}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object, found {type(values).__name__}")
    return values


class _Keys:
    """Reads keys of config.json; a refusal names the file and the key."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def error(self, key: str, problem: str) -> ValueError:
        return ValueError(f"{self.source}: {key}: {problem}")

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise self.error(key, "expected, but not there")
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.error(key, f"expected a positive number, given {value!r}")
        return float(value)

    def positive(self, key: str, default: int | None = None) -> int:
        number = self.number(key, default)
        if number != int(number):
            raise self.error(key, f"expected a whole number, given {number}")
        return int(number)

    def even(self, key: str, default: int) -> int:
        number = self.positive(key, default)
        if number % 2:
            raise self.error(key, f"expected an even number (rotary pairs), found {number}")
        return number

    def inside(self, key: str) -> _Keys:
        """The keys of the object under `key`; empty when it is absent."""
        value = self.values.get(key) or {}
        if not isinstance(value, dict):
            raise self.error(key, f"expected an object, given {value!r}")
        return _Keys(value, f"{self.source}: {key}")


def _family(keys: _Keys) -> Family:
    for key in EXPERTS:
        if keys.values.get(key):
            raise keys.error(key, "mixture-of-experts models are not served")
    name = keys.values.get("model_type")
    if name not in FAMILIES:
        near = difflib.get_close_matches(str(name), FAMILIES, n=1)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise keys.error("model_type", f"expected one of {', '.join(FAMILIES)}, given {name!r}{hint}")
    return FAMILIES[name]


def _rope(keys: _Keys, max_positions: int) -> Rope:
    """transformers 5 writes rope_parameters; before it, rope_scaling with rope_theta beside it."""
    rope = keys.inside("rope_parameters" if keys.values.get("rope_parameters") else "rope_scaling")
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    if any(isinstance(value, dict) for value in rope.values.values()):
        raise keys.error("rope_parameters", "one for each kind of layer is not served, only one for all")
    if kind not in ROPE_TYPES:
        raise rope.error("rope_type", f"expected one of {', '.join(ROPE_TYPES)}, given {kind!r}")
    for holder in (rope, keys):
        if (partial := holder.values.get("partial_rotary_factor")) not in (None, 1, 1.0):
            raise holder.error("partial_rotary_factor", f"expected 1, given {partial!r}")
    theta = rope.number("rope_theta", keys.number("rope_theta", DEFAULT_THETA))
    if kind == "default":
        return Rope(theta=theta)
    if kind == "linear":
        return Rope(kind, theta, rope.number("factor"))
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low >= high:
        raise rope.error("high_freq_factor", f"expected more than low_freq_factor {low}, given {high}")
    original = rope.positive("original_max_position_embeddings", max_positions)
    return Rope(kind, theta, rope.number("factor"), low, high, original)


def _window(keys: _Keys, family: Family, layers: int) -> int | None:
    """One window for all layers, or none. layer_types, where there, overrides the older keys."""
    slides = family.windows == "sliding_window" or bool(keys.values.get("use_sliding_window"))
    if "sliding_window" in keys.values and keys.values["sliding_window"] is None:
        slides = False
    first = 0 if family.windows == "sliding_window" else keys.values.get("max_window_layers", MAX_WINDOW_LAYERS)
    kinds = {"sliding_attention" if slides and i >= first else "full_attention" for i in range(layers)}
    kinds = set(keys.values.get("layer_types") or kinds) if family.windows != "never" else {"full_attention"}
    if kinds == {"full_attention"}:
        return None
    if kinds != {"sliding_attention"}:
        found = ", ".join(sorted(map(str, kinds)))
        raise keys.error("layer_types", f"expected one kind for all layers, found {found} (see max_window_layers)")
    return keys.positive("sliding_window", DEFAULT_WINDOW)


def _quantization(keys: _Keys) -> Quantization | None:
    if not keys.values.get("quantization_config"):
        return None
    section = keys.inside("quantization_config")
    return parse_quantization(section.values, section.source)
