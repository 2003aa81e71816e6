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


Rule = Callable[[EngineConfig], Mapped]
Fixed = dict[str, tuple[Any, str]]
"""Flags that no single field gives: name -> (value, why). value: None where the flag is left out, and why it is."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a mapping table: our field, the foreign flag (None: there is none), and the rule between them."""

    knob: str
    flag: str | None
    rule: Rule


def same(knob: str, note: str) -> Rule:
    return lambda config: Mapped("exact", note, getattr(config, knob))


def none(note: str) -> Rule:
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
    """max_num_seqs, fewer in the measure that a sequence of full length takes more KV once nothing is evicted; at least
    as many as the page pool holds of those. Measured batches share the pool: their sequences are seldom of full length.

    Raises ValueError when the model's config.json cannot be read.
    """
    if config.kv_window is None:
        return config.max_num_seqs
    if not config.uses_draft_model:
        config = config.model_copy(update={"draft_model": None})
    windowed = plan_memory(config)
    full = plan_memory(config.model_copy(update={"kv_window": None, "kv_heavy_tokens": 0}))
    alike = config.max_num_seqs * windowed.sequence_bytes // full.sequence_bytes
    return max(1, min(config.max_num_seqs, max(alike, full.sequences)))


def window_consequence(config: EngineConfig) -> str:
    """What dropping kv_window costs: memory of a sequence, sequences in the same pool."""
    limit = model_limit(config)
    held = min(limit, (config.kv_window or limit) + config.kv_sink_tokens + config.kv_heavy_tokens)
    return (
        f"Without it a sequence may hold {limit} tokens of KV instead of {held} ({limit / held:.3g}x), so "
        f"{sequences_without_window(config)} of {config.max_num_seqs} sequences share the same memory; quality is "
        "expected no lower than measured."
    )


def unless_set(knob: str, consequence: str) -> Rule:
    """For a field that the other engine lacks: nothing is lost while it has our default, else `consequence`."""
    default = EngineConfig.model_fields[knob].default

    def rule(config: EngineConfig) -> Mapped:
        if getattr(config, knob) == default:
            return Mapped("exact", "Not used: nothing is lost.")
        return Mapped("none", consequence)

    return rule


def batch_without_window(engine: str) -> Rule:
    """max_num_seqs for an engine that has no kv_window."""

    def rule(config: EngineConfig) -> Mapped:
        if config.kv_window is None:
            return Mapped("exact", "Sequences that run at once.", config.max_num_seqs)
        note = f"Measured with {config.max_num_seqs} and kv_window, which {engine} lacks; as many as share the pool."
        return Mapped("approximate", note, sequences_without_window(config))

    return rule


def dropped_window(config: EngineConfig) -> Mapped:
    """kv_window for an engine that has none."""
    if config.kv_window is None:
        return Mapped("exact", "Not set: nothing is lost.")
    return Mapped("none", f"Dropped (measured with {config.kv_window} tokens). {window_consequence(config)}")


def stored_kv(engine: str, known: dict[str, Mapped]) -> Rule:
    """kv_cache_dtype by the engine's own words; auto where the compute dtype is the one that was measured."""

    def rule(config: EngineConfig) -> Mapped:
        stored = config.kv_cache_dtype
        if stored in known:
            return known[stored]
        if stored == config.dtype:
            return Mapped("exact", f"auto stores {stored}, because the model runs in {stored}.", "auto")
        note = f"{engine} stores no {stored}; auto takes the compute dtype ({config.dtype}), quality no lower."
        return Mapped("none", note, "auto")

    return rule


def page_size(engine: str, sizes: tuple[int, ...]) -> Rule:
    """block_size, or the nearest of the sizes that the engine has."""

    def rule(config: EngineConfig) -> Mapped:
        size = config.block_size
        if size in sizes:
            return Mapped("exact", "Tokens in a page; an attention backend may accept fewer sizes.", size)
        nearest = min(sizes, key=lambda candidate: (abs(candidate - size), candidate))
        return Mapped("approximate", f"{engine} has no pages of {size} tokens; the nearest size.", nearest)

    return rule


def speculation(draft: Mapped, ngram: Mapped) -> Rule:
    """speculative_method: what it becomes with a draft model, and with n-grams."""

    def rule(config: EngineConfig) -> Mapped:
        if not config.num_speculative_tokens:
            return Mapped("exact", "Not used: no speculation.")
        return draft if config.uses_draft_model else ngram

    return rule


def draft_path(fit: Fit, note: str, suffix: str = "") -> Rule:
    """draft_model: its directory with `suffix`, where it is used."""

    def rule(config: EngineConfig) -> Mapped:
        if not config.uses_draft_model:
            return Mapped("exact", "Not used: no draft model is loaded.")
        return Mapped(fit, note, f"{config.draft_model}{suffix}")

    return rule


def depth(note: str) -> Rule:
    """num_speculative_tokens, where there is speculation."""

    def rule(config: EngineConfig) -> Mapped:
        if not config.num_speculative_tokens:
            return Mapped("exact", "0: no speculation.")
        return Mapped("exact", note, config.num_speculative_tokens)

    return rule


def lookup_length(note: str) -> Rule:
    """prompt_lookup_max, where n-grams are looked up."""

    def rule(config: EngineConfig) -> Mapped:
        if not config.num_speculative_tokens or config.uses_draft_model:
            return Mapped("exact", "Not used: no n-grams are looked up.")
        return Mapped("approximate", note, config.prompt_lookup_max)

    return rule


def capped_by_gateway(config: EngineConfig) -> Mapped:
    """max_queued_requests for an engine whose queue has no limit."""
    if config.max_queued_requests is None:
        return Mapped("exact", "Not used: nothing is lost.")
    admitted = config.max_queued_requests + sequences_without_window(config)
    return Mapped("none", f"No queue cap: let a gateway admit {admitted} requests at once, running or waiting.")


def eager(config: EngineConfig) -> Mapped:
    """enforce_eager, for an engine whose own default are CUDA graphs."""
    if config.enforce_eager:
        return Mapped("exact", "No CUDA graphs, as measured.", True)
    return Mapped("exact", "CUDA graphs are its default.")


OURS_ALONE: tuple[Row, ...] = (
    Row("attention_backend", None, none("Each engine chooses among its own kernels, which compute the same.")),
    Row("async_scheduling", None, none("Left to the engine, whose default schedules ahead too; tokens are the same.")),
    Row("weight_group_size", None, unless_set("weight_group_size", "Belongs to weight_dtype int4.")),
    Row("max_skip_ahead", None, unless_set("max_skip_ahead", "The order of the queue is kept.")),
    Row("synthetic_acceptance", None, unless_set("synthetic_acceptance", "Dropped: a measurement of speed only.")),
)
"""Fields that no other engine has, or is better left to choose."""
NO_WINDOW: tuple[Row, ...] = (
    Row("kv_window", None, dropped_window),
    Row("kv_sink_tokens", None, none("Belongs to kv_window.")),
    Row("kv_heavy_tokens", None, none("Belongs to kv_window.")),
)
"""The window and what belongs to it, for an engine that has none."""
NO_QUEUE_CAP: tuple[Row, ...] = (
    Row("max_queued_requests", None, capped_by_gateway),
    Row("max_queued_tokens", None, unless_set("max_queued_tokens", "No queue cap: limit requests in a gateway.")),
)
