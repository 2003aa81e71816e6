"""Quantization: what `quantization_config` in config.json says of packed linear layers. No tensors here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

PackedFormat = Literal["gptq", "awq", "pack-quantized", "int-quantized"]


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a checkpoint stores its linear layers. group_size: inputs that share a scale; None: all of a row.

    symmetric: no zero points. zero_offset: what is added to a stored zero point (1 in GPTQ's first format).
    reordered: the groups' inputs are not in order (GPTQ's g_idx). skipped: of layers left dense, parts of their names
    ("awq") or names and "re:" patterns (compressed-tensors).
    """

    format: PackedFormat
    bits: int
    group_size: int | None
    symmetric: bool
    zero_offset: int = 0
    reordered: bool = False
    skipped: tuple[str, ...] = ()

    def packs(self, name: str) -> bool:
        """Whether the linear layer `name` (model.layers.0.mlp.up_proj) is packed."""
        if self.format == "awq":
            return not any(part in name for part in self.skipped)
        return not any(
            re.match(part.removeprefix("re:"), name) if part.startswith("re:") else part == name
            for part in self.skipped
        )

    def groups(self, inputs: int) -> int:
        return 1 if self.group_size is None else inputs // self.group_size


def parse_quantization(values: Mapping[str, Any], source: str) -> Quantization:
    """Raises ValueError (one line) naming the key of quantization_config whose value is not served."""
    keys = _Section(values, source)
    method = keys.one_of("quant_method", ("gptq", "awq", "compressed-tensors"))
    return {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed_tensors}[method](keys)


class _Section:
    """Reads keys of one object; a refusal names the file, the object and the key."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def error(self, key: str, expected: str, given: object) -> ValueError:
        return ValueError(f"{self.source}: {key}: expected {expected}, given {given!r}")

    def one_of(self, key: str, choices: tuple[Any, ...], default: Any = None) -> Any:
        value = self.values.get(key, default)
        value = value.lower() if isinstance(value, str) else value
        if value not in choices:
            raise self.error(key, " or ".join(map(str, choices)), value)
        return value

    def refuse(self, **served: Any) -> None:
        """Each key must be absent, empty or have this value."""
        for key, only in served.items():
            if (value := self.values.get(key)) not in (only, None, {}, []):
                raise self.error(key, f"nothing or {only!r}" if only is not None else "nothing", value)

    def group_size(self, key: str) -> int | None:
        value = self.values.get(key)
        if value == -1:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 2 or value % 2:
            raise self.error(key, "an even number of inputs, or -1 for all", value)
        return value

    def names(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key) or []
        if not isinstance(value, list):
            raise self.error(key, "a list of names", value)
        return tuple(map(str, value))

    def patterns(self, key: str) -> tuple[str, ...]:
        """Names, and regular expressions after "re:"."""
        names = self.names(key)
        for name in names:
            try:
                re.compile(name.removeprefix("re:") if name.startswith("re:") else "")
            except re.error:
                raise self.error(key, "valid patterns after re:", name) from None
        return names

    def inside(self, key: str) -> _Section:
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.error(key, "an object", value)
        return _Section(value, f"{self.source}: {key}")


def _gptq(keys: _Section) -> Quantization:
    stored = keys.one_of("checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    keys.refuse(dynamic=None, lm_head=False, pack_dtype="int32")
    return Quantization(
        "gptq",
        keys.one_of("bits", (4, 8)),
        keys.group_size("group_size"),
        symmetric=bool(keys.values.get("sym", True)),
        zero_offset=1 if stored == "gptq" else 0,
        reordered=bool(keys.values.get("desc_act", False)),
    )


def _awq(keys: _Section) -> Quantization:
    keys.one_of("version", ("gemm",), "gemm")
    keys.one_of("zero_point", (True,), True)
    bits = keys.one_of("bits" if "bits" in keys.values else "w_bit", (4,))
    size = keys.group_size("group_size" if "group_size" in keys.values else "q_group_size")
    return Quantization("awq", bits, size, symmetric=False, skipped=keys.names("modules_to_not_convert"))


def _compressed_tensors(keys: _Section) -> Quantization:
    stored = keys.one_of("format", ("pack-quantized", "int-quantized"))
    keys.one_of("quantization_status", ("compressed",), "compressed")
    keys.refuse(kv_cache_scheme=None, transform_config=None)
    groups = keys.inside("config_groups")
    if len(groups.values) != 1:
        raise keys.error("config_groups", "one group", sorted(groups.values))
    group = groups.inside(next(iter(groups.values)))
    if group.values.get("targets") != ["Linear"]:
        raise group.error("targets", "['Linear']", group.values.get("targets"))
    group.refuse(output_activations=None, format=stored)
    if group.values.get("input_activations"):
        # Quantised on the fly to make a faster product; computing with more precise inputs loses nothing.
        group.inside("input_activations").one_of("dynamic", (True,))
    return _scheme(group.inside("weights"), stored, keys.patterns("ignore"))


def _scheme(weights: _Section, stored: PackedFormat, skipped: tuple[str, ...]) -> Quantization:
    weights.one_of("type", ("int",), "int")
    bits = weights.one_of("num_bits", (8,) if stored == "int-quantized" else (4, 8))
    strategy = weights.one_of("strategy", ("channel", "group"))
    weights.one_of("actorder", (None, False, "weight", "static"))
    size = weights.group_size("group_size") if strategy == "group" else None
    return Quantization(stored, bits, size, bool(weights.values.get("symmetric", True)), skipped=skipped)
