"""One row a field of EngineConfig: what it becomes in another engine, and how well it carries over."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.config import EngineConfig
from engine.memory import plan_memory

Fit = Literal["exact", "approximate", "none"]


@dataclass(frozen=True, slots=True)
class Mapped:
    """What one field becomes. value: of the flag; None when the file carries no such flag."""

    fit: Fit
    note: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a mapping table: our field, the foreign flag (None: there is none), and the rule between them."""

    knob: str
    flag: str | None
    rule: Callable[[EngineConfig], Mapped]


def same(knob: str, note: str) -> Callable[[EngineConfig], Mapped]:
    return lambda config: Mapped("exact", note, getattr(config, knob))


def none(note: str) -> Callable[[EngineConfig], Mapped]:
    return lambda config: Mapped("none", note)


def model_limit(config: EngineConfig) -> int:
    """The longest sequence in tokens: max_model_len, or max_position_embeddings of the checkpoint."""
    if config.max_model_len is not None:
        return config.max_model_len
    path = Path(config.model) / "config.json"
    try:
        limit = json.loads(path.read_text(encoding="utf-8")).get("max_position_embeddings")
    except (OSError, ValueError):
        limit = None
    if not isinstance(limit, int):
        raise ValueError(f"{path}: expected max_position_embeddings (tokens); or set max_model_len in the study")
    return limit


def sequences_without_window(config: EngineConfig) -> int:
    """max_num_seqs, or the sequences of full length that the page pool holds once nothing is evicted, if fewer.

    Raises ValueError when the model's config.json cannot be read.
    """
    if config.kv_window is None:
        return config.max_num_seqs
    full = config.model_copy(update={"kv_window": None, "kv_heavy_tokens": 0})
    if not config.uses_draft_model:
        full = full.model_copy(update={"draft_model": None})
    return max(1, min(config.max_num_seqs, plan_memory(full).sequences))


def window_consequence(config: EngineConfig) -> str:
    """What dropping kv_window costs: memory of a sequence, sequences in the same pool."""
    limit = model_limit(config)
    held = min(limit, (config.kv_window or limit) + config.kv_sink_tokens + config.kv_heavy_tokens)
    return (
        f"Without it a sequence may hold {limit} tokens of KV instead of {held} ({limit / held:.3g}x), so "
        f"{sequences_without_window(config)} of {config.max_num_seqs} sequences fit the same memory; quality is "
        "expected no lower than measured."
    )


def unless_set(knob: str, consequence: str) -> Callable[[EngineConfig], Mapped]:
    """For a field that the other engine lacks: nothing is lost while it has our default, else `consequence`."""
    default = EngineConfig.model_fields[knob].default

    def rule(config: EngineConfig) -> Mapped:
        if getattr(config, knob) == default:
            return Mapped("exact", "Not used: nothing is lost.")
        return Mapped("none", consequence)

    return rule
