"""Deploy files: a measured configuration in the words of the engine that will serve it.

Foreign flags live here only. Every EngineConfig field has one row per target that says how well it carries over:
exact, approximate, or none. Flag names: vLLM's serve arguments (docs.vllm.ai, v0.32.0).
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from engine.config import EngineConfig, knobs, parse_config
from tuner.serving.config import ServingConfig

Fit = Literal["exact", "approximate", "none"]
TARGETS = ("engine", "vllm")
_VLLM_BLOCK_SIZES = (1, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the configuration comes from; goes into the header of each file. date: as the caller writes it."""

    study: str
    trial: int
    date: str


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


def export(target: str, config: ServingConfig, *, out: Path, model_name: str, provenance: Provenance) -> list[Path]:
    """Write the files of `target` ("engine", "vllm") into the directory `out` and return their paths.

    model_name: the name clients ask for, where the target can set it. Raises ValueError for an unknown target, for
    values that are no EngineConfig, and when the model's longest sequence cannot be read (vllm).
    """
    if target not in TARGETS:
        near = difflib.get_close_matches(target, TARGETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(TARGETS)}"
        raise ValueError(f"--to {target}: unknown export target{hint}")
    engine_config = _absolute(parse_config(config.values, source=f"configuration {config.fingerprint}"))
    header = _header(config, provenance)
    if target == "engine":
        text = "".join(_engine_lines(engine_config, header, frozenset(config.knobs)))
    else:
        text = "".join(_vllm_lines(engine_config, header, model_name))
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{target}.yaml"
    path.write_text(text, encoding="utf-8")
    return [path]


def _absolute(config: EngineConfig) -> EngineConfig:
    """Model directories from the current directory, so that the file may be moved."""
    draft = None if config.draft_model is None else str(Path(config.draft_model).absolute())
    return config.model_copy(update={"model": str(Path(config.model).absolute()), "draft_model": draft})


def _comment(text: str) -> str:
    """`text` as one comment line, whatever characters it holds."""
    return "# " + "".join(c if c.isprintable() else " " for c in text) + "\n"


def _header(config: ServingConfig, provenance: Provenance) -> str:
    return _comment(
        f"servetune: study {provenance.study}, trial {provenance.trial}, configuration {config.fingerprint}, "
        f"{provenance.date}"
    )


def _entry(key: str, value: Any) -> str:
    # ASCII only: PyYAML writes U+0085 unquoted otherwise, and reads it back as a space.
    return yaml.safe_dump({key: value}, default_flow_style=False, allow_unicode=False, width=math.inf)


def _engine_lines(config: EngineConfig, header: str, tuned: frozenset[str]) -> Iterator[str]:
    yield header
    yield _comment("Run: python -m engine --config engine.yaml --port 8000")
    yield _comment("Every setting is written out, so that a later default changes nothing.")
    for knob in knobs():
        origin = "tuned" if knob.name in tuned else "fixed in the study"
        yield "\n" + _comment(f"{knob.unit}; {origin}. {knob.description}")
        yield _entry(knob.name, getattr(config, knob.name))


def _vllm_lines(config: EngineConfig, header: str, model_name: str) -> Iterator[str]:
    yield header
    yield _comment("Run: vllm serve --config vllm.yaml --host 127.0.0.1 --port 8000")
    yield _comment("Measured on servetune's engine, not on vLLM: exact means the same setting, not the same speed.")
    yield "\n" + _comment("served-model-name: the name that clients ask for")
    yield _entry("served-model-name", model_name)
    for row in VLLM:
        mapped = row.rule(config)
        flag = f"--{row.flag}" if row.flag else "no flag"
        yield "\n" + _comment(f"{row.knob} -> {flag}: {mapped.fit}. {mapped.note}")
        if mapped.value is not None:
            assert row.flag is not None
            yield _entry(row.flag, mapped.value)
    for flag, note in _VLLM_FIXED.items():
        yield "\n" + _comment(f"{flag}: {note}")
        yield _entry(flag, True)


# Settings of vLLM that our engine does not have as knobs, written so that vLLM behaves as what was measured.
_VLLM_FIXED = {
    "enable-chunked-prefill": "the measured engine always mixes prefill chunks with decodes.",
    "no-enable-prefix-caching": "the measured engine shares no prefixes between requests. Remove the line to let vLLM "
    "share them (its default): prompts with common beginnings then start sooner than was measured.",
}


def _same(knob: str, note: str) -> Callable[[EngineConfig], Mapped]:
    return lambda config: Mapped("exact", note, getattr(config, knob))


def _none(note: str) -> Callable[[EngineConfig], Mapped]:
    return lambda config: Mapped("none", note)


def _seed(config: EngineConfig) -> Mapped:
    return Mapped("approximate", "Another random stream: samples differ, greedy answers do not.", config.seed)


def _dtype(config: EngineConfig) -> Mapped:
    if config.dtype != "auto":
        return Mapped("exact", "Weights and activations.", config.dtype)
    return Mapped("approximate", "Our auto follows the device; vLLM's auto follows the checkpoint.", "auto")


def _max_model_len(config: EngineConfig) -> Mapped:
    if config.max_model_len is not None:
        return Mapped("exact", "Prompt plus output.", config.max_model_len)
    return Mapped("exact", "Not set in the study; read from the model's config.json.", _model_limit(config))


def _model_limit(config: EngineConfig) -> int:
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


def _max_num_seqs(config: EngineConfig) -> Mapped:
    if config.kv_window is None:
        return Mapped("exact", "Sequences in one step.", config.max_num_seqs)
    note = "Measured with kv_window, which vLLM lacks: fewer sequences may fit, see kv_window."
    return Mapped("approximate", note, config.max_num_seqs)


def _prefill_chunk_size(config: EngineConfig) -> Mapped:
    if config.prefill_chunk_size is None:
        return Mapped("exact", "Not set: one prompt may take the whole budget, as by default in vLLM.")
    chunk = min(config.prefill_chunk_size, _model_limit(config))
    note = "Bounds the chunk of a prompt longer than this; --max-num-batched-tokens bounds the step."
    return Mapped("approximate", note, chunk)


def _block_size(config: EngineConfig) -> Mapped:
    size = config.block_size
    if size in _VLLM_BLOCK_SIZES:
        return Mapped("exact", "Tokens in a page; an attention backend may accept fewer sizes.", size)
    nearest = min(_VLLM_BLOCK_SIZES, key=lambda candidate: (abs(candidate - size), candidate))
    return Mapped("approximate", f"vLLM has no pages of {size} tokens; the nearest size.", nearest)


# kv_cache_dtype -> value of --kv-cache-dtype, fit, why.
_VLLM_KV_DTYPES: dict[str, Mapped] = {
    "auto": Mapped("exact", "Keys and values in the compute dtype.", "auto"),
    "float16": Mapped("exact", "Older vLLM takes auto with --dtype float16 only.", "float16"),
    "int8": Mapped("exact", "One scale per token and head on both sides.", "int8_per_token_head"),
    "fp8_e4m3": Mapped(
        "approximate",
        "One scale per token and head on both sides, other rounding; older vLLM: fp8_e4m3, one scale per tensor. "
        "Check quality again.",
        "fp8_per_token_head",
    ),
}


def _kv_cache_dtype(config: EngineConfig) -> Mapped:
    stored = config.kv_cache_dtype
    if stored in _VLLM_KV_DTYPES:
        return _VLLM_KV_DTYPES[stored]
    if config.dtype == stored:
        return Mapped("exact", f"auto stores {stored}, because --dtype is {stored}.", "auto")
    note = f"Measured with {stored}; older vLLM refuses the word, and auto stores the compute dtype ({config.dtype})."
    return Mapped("approximate", note, "auto")


def _window_consequence(config: EngineConfig) -> str:
    limit = _model_limit(config)
    held = min(limit, (config.kv_window or limit) + config.kv_sink_tokens)
    return (
        f"Without it a sequence may hold {limit} tokens of KV instead of {held} ({limit / held:.3g}x), "
        f"so as few as {max(1, config.max_num_seqs * held // limit)} of {config.max_num_seqs} sequences may fit "
        "the same memory; quality is expected no lower than measured."
    )


def _kv_window(config: EngineConfig) -> Mapped:
    if config.kv_window is None:
        return Mapped("none", "Not set: nothing is lost.")
    return Mapped("none", f"Dropped (measured with {config.kv_window} tokens). {_window_consequence(config)}")


def _draft_model(config: EngineConfig) -> Mapped:
    if config.num_speculative_tokens:
        return Mapped("exact", "Part of --speculative-config, below.")
    return Mapped("exact", "Not used: no speculation, so no draft model is loaded.")


def _num_speculative_tokens(config: EngineConfig) -> Mapped:
    if not config.num_speculative_tokens:
        return Mapped("exact", "0: no speculation.")
    speculative = {
        "method": "draft_model",
        "model": config.draft_model,
        "num_speculative_tokens": config.num_speculative_tokens,
    }
    return Mapped("exact", "Draft model and depth.", json.dumps(speculative, ensure_ascii=False))


VLLM: tuple[Row, ...] = (
    Row("model", "model", _same("model", "A local checkpoint directory.")),
    Row("draft_model", "speculative-config", _draft_model),
    Row("device", None, _none("vLLM is built for one platform and uses that.")),
    Row("dtype", "dtype", _dtype),
    Row("num_threads", None, _none("On vLLM's CPU build set the environment variable VLLM_CPU_OMP_THREADS_BIND.")),
    Row("seed", "seed", _seed),
    Row("max_model_len", "max-model-len", _max_model_len),
    Row("max_num_seqs", "max-num-seqs", _max_num_seqs),
    Row(
        "max_num_batched_tokens",
        "max-num-batched-tokens",
        _same("max_num_batched_tokens", "Token budget of one step; not below max_num_seqs, on both sides."),
    ),
    Row("prefill_chunk_size", "long-prefill-token-threshold", _prefill_chunk_size),
    Row("block_size", "block-size", _block_size),
    Row("kv_cache_dtype", "kv-cache-dtype", _kv_cache_dtype),
    Row(
        "kv_cache_memory_bytes",
        "kv-cache-memory-bytes",
        _same("kv_cache_memory_bytes", "The page pool of one GPU; overrides --gpu-memory-utilization."),
    ),
    Row("kv_window", None, _kv_window),
    Row("kv_sink_tokens", None, _none("Belongs to kv_window, which vLLM lacks.")),
    Row("num_speculative_tokens", "speculative-config", _num_speculative_tokens),
)
"""EngineConfig in vLLM's words, one row a field."""
