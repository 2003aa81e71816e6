"""EngineConfig in llama.cpp's words: one row a field, with how well it carries over.

Flag names: tools/server/README.md of llama.cpp 0c1e570 (October 2026). Flags without a value have the value True.
"""

from __future__ import annotations

from engine.config import EngineConfig
from tuner.serving.export.mapping import (
    NO_QUEUE_CAP,
    NO_WINDOW,
    OURS_ALONE,
    Fit,
    Fixed,
    Mapped,
    Row,
    batch_without_window,
    draft_path,
    lookup_length,
    model_limit,
    none,
    same,
    sequences_without_window,
    speculation,
    unless_set,
)

_CACHE_TYPES: dict[str, tuple[Fit, str, str]] = {
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
    return Mapped(fit, f"{note} Also --cache-type-v, which needs flash attention.", value)


def _context(config: EngineConfig) -> Mapped:
    note = "One request's longest sequence times the slots: --ctx-size is the sum over all slots."
    return Mapped("exact", note, model_limit(config) * sequences_without_window(config))


def _chunk(config: EngineConfig) -> Mapped:
    chunk = min(config.prefill_chunk_size or config.max_num_batched_tokens, config.max_num_batched_tokens)
    return Mapped("approximate", "Physical batch: prompts of all slots are cut to it together.", chunk)


def _pool(config: EngineConfig) -> Mapped:
    return Mapped("none", "llama.cpp reserves --ctx-size tokens; see max_model_len.")


def _prefix_caching(config: EngineConfig) -> Mapped:
    if config.enable_prefix_caching:
        return Mapped("approximate", "A slot re-uses the prompt that it held last; slots do not share pages.", True)
    return Mapped("exact", "Off, as measured: --no-cache-prompt, below.")


def _depth(config: EngineConfig) -> Mapped:
    if not config.num_speculative_tokens:
        return Mapped("exact", "0: no speculation.")
    if not config.uses_draft_model:
        return Mapped("approximate", "With n-grams as --spec-ngram-simple-size-m, below.")
    return Mapped("exact", "Most tokens guessed at once.", config.num_speculative_tokens)


def llamacpp_fixed(config: EngineConfig) -> Fixed:
    fixed: Fixed = {
        "cache-type-v": (_CACHE_TYPES[config.kv_cache_dtype][1], "the values, as the keys."),
        "flash-attn": ("on", "a quantised V cache needs it."),
        "no-context-shift": (True, "a request ends at its length, as measured."),
        "metrics": (True, "for Prometheus, at /metrics."),
    }
    if config.num_speculative_tokens and not config.uses_draft_model:
        note = "num_speculative_tokens: the guess that follows the n-gram (llama.cpp's own default is 48)."
        fixed["spec-ngram-simple-size-m"] = (config.num_speculative_tokens, note)
    if not config.enable_prefix_caching:
        fixed["no-cache-prompt"] = (True, "the measured engine shared no prefixes; remove the line to allow it.")
    return fixed


_DRAFT_SIMPLE = Mapped("approximate", "llama.cpp drafts for each slot by itself.", "draft-simple")
_NGRAM_SIMPLE = Mapped("approximate", "Looks n-grams up in the request, with lengths of its own.", "ngram-simple")
LLAMACPP: tuple[Row, ...] = (
    *OURS_ALONE,
    Row("enforce_eager", None, unless_set("enforce_eager", "CUDA graphs are a choice of its build.")),
    *NO_WINDOW,
    *NO_QUEUE_CAP,
    Row(
        "model", "model", lambda c: Mapped("approximate", "Convert it first: convert_hf_to_gguf.py.", f"{c.model}.gguf")
    ),
    Row("draft_model", "spec-draft-model", draft_path("approximate", "Converted to GGUF, as the model.", ".gguf")),
    Row("device", None, none("llama.cpp takes the GPU that it was built for.")),
    Row("dtype", None, none("The GGUF file decides: convert with --outtype of the same dtype.")),
    Row("weight_dtype", None, unless_set("weight_dtype", "Quantise the GGUF file: Q8_0 for int8, Q4_K_M for int4.")),
    Row("load_format", None, unless_set("load_format", "A measurement of speed: deploy real weights.")),
    Row("num_threads", "threads", same("num_threads", "Threads of a step.")),
    Row("seed", "seed", lambda c: Mapped("approximate", "Another random stream.", c.seed)),
    Row("max_model_len", "ctx-size", _context),
    Row("prompt_truncation", None, unless_set("prompt_truncation", "A prompt that is too long is refused.")),
    Row("max_num_seqs", "parallel", batch_without_window("llama.cpp")),
    Row("max_num_batched_tokens", "batch-size", same("max_num_batched_tokens", "Logical batch of one step.")),
    Row("prefill_chunk_size", "ubatch-size", _chunk),
    Row("itl_target", None, unless_set("itl_target", "Lower --ubatch-size until ITL holds.")),
    Row("scheduling_policy", None, unless_set("scheduling_policy", "Requests go first come, first served.")),
    Row("watermark", None, unless_set("watermark", "Each slot has its tokens reserved.")),
    Row("block_size", None, none("llama.cpp has no pages.")),
    Row("kv_cache_dtype", "cache-type-k", _cache_type),
    Row("kv_cache_memory_bytes", None, _pool),
    Row("enable_prefix_caching", "cache-prompt", _prefix_caching),
    Row("num_speculative_tokens", "spec-draft-n-max", _depth),
    Row("speculative_method", "spec-type", speculation(_DRAFT_SIMPLE, _NGRAM_SIMPLE)),
    Row("prompt_lookup_min", None, unless_set("prompt_lookup_min", "n-grams have one length, see prompt_lookup_max.")),
    Row("prompt_lookup_max", "spec-ngram-simple-size-n", lookup_length("Length of the n-gram that is looked up.")),
    Row("speculation_adaptive", None, unless_set("speculation_adaptive", "As many tokens are guessed in every step.")),
    Row(
        "speculation_min_acceptance",
        None,
        unless_set("speculation_min_acceptance", "--spec-draft-p-min stops a guess instead."),
    ),
)
