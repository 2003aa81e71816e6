"""EngineConfig in llama.cpp's words: one row a field, with how well it carries over.

Flag names: tools/server/README.md of llama.cpp 0c1e570 (October 2026). Flags without a value have the value True.
"""

from __future__ import annotations

from engine.config import EngineConfig
from tuner.serving.export.mapping import (
    Mapped,
    Row,
    model_limit,
    none,
    same,
    sequences_without_window,
    unless_set,
    window_consequence,
)

_CACHE_TYPES = {
    "auto": ("approximate", "f16", "llama.cpp stores f16 unless told; the measured cache had the compute dtype."),
    "float32": ("exact", "f32", "The same dtype."),
    "float16": ("exact", "f16", "The same dtype."),
    "bfloat16": ("exact", "bf16", "The same dtype."),
    "int8": ("approximate", "q8_0", "A scale per 32 values, ours per token and head. Check quality again."),
    "int4": ("approximate", "q4_0", "A scale per 32 values, no rotation. Check quality again."),
    "fp8_e4m3": ("none", "q8_0", "llama.cpp has no fp8; q8_0 takes as many bytes. Check quality again."),
}


def _cache_type(config: EngineConfig) -> Mapped:
    fit, value, note = _CACHE_TYPES[config.kv_cache_dtype]
    return Mapped(fit, f"{note} Also --cache-type-v, which needs flash attention.", value)  # type: ignore[arg-type]


def _slots(config: EngineConfig) -> Mapped:
    if config.kv_window is None:
        return Mapped("exact", "Slots: requests that run at once.", config.max_num_seqs)
    note = f"Measured with {config.max_num_seqs} and kv_window; as many as fit without it."
    return Mapped("approximate", note, sequences_without_window(config))


def _context(config: EngineConfig) -> Mapped:
    note = "One request's longest sequence times the slots: --ctx-size is the sum over all slots."
    return Mapped("exact", note, model_limit(config) * sequences_without_window(config))


def _chunk(config: EngineConfig) -> Mapped:
    chunk = min(config.prefill_chunk_size or config.max_num_batched_tokens, config.max_num_batched_tokens)
    return Mapped("approximate", "Physical batch: prompts of all slots are cut to it together.", chunk)


def _pool(config: EngineConfig) -> Mapped:
    return Mapped("none", "llama.cpp reserves --ctx-size tokens; see max_model_len.")


def _window(config: EngineConfig) -> Mapped:
    if config.kv_window is None:
        return Mapped("exact", "Not set: nothing is lost.")
    return Mapped("none", f"--context-shift drops tokens only at the end of a slot. {window_consequence(config)}")


def _prefix_caching(config: EngineConfig) -> Mapped:
    if config.enable_prefix_caching:
        return Mapped("approximate", "A slot re-uses the prompt that it held last; slots do not share pages.", True)
    return Mapped("exact", "Off, as measured: --no-cache-prompt, below.")


def _speculation(config: EngineConfig) -> Mapped:
    if not config.num_speculative_tokens:
        return Mapped("exact", "Not used: no speculation.")
    if config.uses_draft_model:
        return Mapped("approximate", "llama.cpp drafts for each slot by itself.", "draft-simple")
    return Mapped("approximate", "Looks n-grams up in the request, with lengths of its own.", "ngram-simple")


def _depth(config: EngineConfig) -> Mapped:
    if not config.uses_draft_model:
        return Mapped("exact", "Not used: no draft model guesses.")
    return Mapped("exact", "Most tokens guessed at once.", config.num_speculative_tokens)


def _draft(config: EngineConfig) -> Mapped:
    if not config.uses_draft_model:
        return Mapped("exact", "Not used: no draft model is loaded.")
    return Mapped("approximate", "Converted to GGUF, as the model.", f"{config.draft_model}.gguf")


def _lookup(config: EngineConfig) -> Mapped:
    if not config.num_speculative_tokens or config.uses_draft_model:
        return Mapped("exact", "Not used: no n-grams are looked up.")
    return Mapped("approximate", "Length of the n-gram that is looked up.", config.prompt_lookup_max)


def llamacpp_fixed(config: EngineConfig) -> dict[str, tuple[object, str]]:
    """Flags that no single field gives: name -> (value, why)."""
    fixed: dict[str, tuple[object, str]] = {
        "cache-type-v": (_CACHE_TYPES[config.kv_cache_dtype][1], "the values, as the keys."),
        "flash-attn": ("on", "a quantised V cache needs it."),
        "no-context-shift": (True, "a request ends at its length, as measured."),
        "metrics": (True, "for Prometheus, at /metrics."),
    }
    if not config.enable_prefix_caching:
        fixed["no-cache-prompt"] = (True, "the measured engine shared no prefixes; remove the line to allow it.")
    return fixed


LLAMACPP: tuple[Row, ...] = (
    Row(
        "model", "model", lambda c: Mapped("approximate", "Convert it first: convert_hf_to_gguf.py.", f"{c.model}.gguf")
    ),
    Row("draft_model", "spec-draft-model", _draft),
    Row("device", None, none("llama.cpp takes the GPU that it was built for.")),
    Row("dtype", None, none("The GGUF file decides: convert with --outtype of the same dtype.")),
    Row("attention_backend", None, none("llama.cpp chooses among its own kernels, which compute the same.")),
    Row("weight_dtype", None, unless_set("weight_dtype", "Quantise the GGUF file: Q8_0 for int8, Q4_K_M for int4.")),
    Row("weight_group_size", None, unless_set("weight_group_size", "Belongs to weight_dtype int4.")),
    Row("load_format", None, unless_set("load_format", "A measurement of speed: deploy real weights.")),
    Row("num_threads", "threads", same("num_threads", "Threads of a step.")),
    Row("seed", "seed", lambda c: Mapped("approximate", "Another random stream.", c.seed)),
    Row("max_model_len", "ctx-size", _context),
    Row("prompt_truncation", None, unless_set("prompt_truncation", "A prompt that is too long is refused.")),
    Row("max_num_seqs", "parallel", _slots),
    Row("max_num_batched_tokens", "batch-size", same("max_num_batched_tokens", "Logical batch of one step.")),
    Row("prefill_chunk_size", "ubatch-size", _chunk),
    Row("itl_target", None, unless_set("itl_target", "Lower --ubatch-size until ITL holds.")),
    Row("scheduling_policy", None, unless_set("scheduling_policy", "Requests go first come, first served.")),
    Row("watermark", None, unless_set("watermark", "Each slot has its tokens reserved.")),
    Row("max_skip_ahead", None, unless_set("max_skip_ahead", "The order of the queue is kept.")),
    Row("max_queued_requests", None, unless_set("max_queued_requests", "No queue cap: limit requests in a gateway.")),
    Row("max_queued_tokens", None, unless_set("max_queued_tokens", "No queue cap: limit requests in a gateway.")),
    Row("block_size", None, none("llama.cpp has no pages.")),
    Row("kv_cache_dtype", "cache-type-k", _cache_type),
    Row("kv_cache_memory_bytes", None, _pool),
    Row("kv_window", None, _window),
    Row("kv_sink_tokens", None, none("Belongs to kv_window.")),
    Row("kv_heavy_tokens", None, none("Belongs to kv_window.")),
    Row("enable_prefix_caching", "cache-prompt", _prefix_caching),
    Row("num_speculative_tokens", "spec-draft-n-max", _depth),
    Row("speculative_method", "spec-type", _speculation),
    Row("prompt_lookup_min", None, unless_set("prompt_lookup_min", "n-grams have one length, see prompt_lookup_max.")),
    Row("prompt_lookup_max", "spec-ngram-simple-size-n", _lookup),
    Row("speculation_adaptive", None, unless_set("speculation_adaptive", "As many tokens are guessed in every step.")),
    Row(
        "speculation_min_acceptance",
        None,
        unless_set("speculation_min_acceptance", "--spec-draft-p-min stops a guess instead."),
    ),
    Row("synthetic_acceptance", None, unless_set("synthetic_acceptance", "Dropped: a measurement of speed only.")),
)
