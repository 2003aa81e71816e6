"""EngineConfig in TensorRT-LLM's words: one row a field, with how well it carries over.

Keys: the YAML that `trtllm-serve MODEL --config FILE` reads (LLM API arguments, 1.3). A dot leads into a nested
mapping.
"""

from __future__ import annotations

from engine.config import EngineConfig
from tuner.serving.export.mapping import (
    NO_QUEUE_CAP,
    OURS_ALONE,
    Mapped,
    Row,
    depth,
    draft_path,
    lookup_length,
    model_limit,
    none,
    page_size,
    same,
    speculation,
    stored_kv,
    unless_set,
)

_KV_DTYPES = {
    "auto": Mapped("exact", "Keys and values in the compute dtype.", "auto"),
    "fp8_e4m3": Mapped("approximate", "fp8 scales by layer, not by token and head. Check quality again.", "fp8"),
}


def _chunk(config: EngineConfig) -> Mapped:
    if config.prefill_chunk_size is None:
        return Mapped("exact", "Not set: a chunk may fill the step, as in TensorRT-LLM.")
    return Mapped("none", "A chunk may fill the step (max_num_tokens); lower that if ITL of long prompts matters.")


def _policy(config: EngineConfig) -> Mapped:
    if config.scheduling_policy == "fcfs":
        note = "First come, first served; what runs may be paused when pages run out, as in the measured engine."
        return Mapped("exact", note, "MAX_UTILIZATION")
    return Mapped(
        "none", f"No {config.scheduling_policy} order; requests go first come, first served.", "MAX_UTILIZATION"
    )


def _window(config: EngineConfig) -> Mapped:
    if config.kv_window is None:
        return Mapped("exact", "Not set: nothing is evicted.")
    note = "The window there counts the sinks too, hence the sum."
    return Mapped("exact", note, [config.kv_window + config.kv_sink_tokens])


def _sinks(config: EngineConfig) -> Mapped:
    if config.kv_window is None:
        return Mapped("exact", "Belongs to kv_window, which is not set.")
    return Mapped(
        "approximate", "First tokens that stay visible; check that the backend heeds them.", config.kv_sink_tokens
    )


def _pool(config: EngineConfig) -> Mapped:
    return Mapped("exact", "Bytes of the page pool of one GPU.", config.kv_cache_memory_bytes)


def _fallback(config: EngineConfig) -> bool:
    return bool(config.num_speculative_tokens and config.speculation_adaptive and config.speculation_min_acceptance > 0)


def _adaptive(config: EngineConfig) -> Mapped:
    if not (config.speculation_adaptive and config.num_speculative_tokens):
        return Mapped("exact", "Not used: nothing is lost.")
    if not _fallback(config):
        return Mapped("none", "As many tokens are guessed in every step.")
    note = "As many tokens in every step, until the mean over this many falls below the threshold: then none, for good."
    return Mapped("approximate", note, ACCEPTANCE_WINDOW)


def _min_acceptance(config: EngineConfig) -> Mapped:
    if not _fallback(config):
        return Mapped("exact", "Not used: nothing is lost.")
    note = "Accepted of drafted tokens. Older ones have acceptance_window and acceptance_length_threshold instead."
    return Mapped("approximate", note, config.speculation_min_acceptance)


ACCEPTANCE_WINDOW = 1000
"""Steps: what ends speculation for good should not be chance."""
# decoding_type is a literal of DraftTargetDecodingConfig; the guide's DraftTarget was the word up to 1.2.
_DRAFT_TARGET = Mapped("exact", "A draft model of its own.", "Draft_Target")
_NGRAM = Mapped("approximate", "n-grams may be copied from another place.", "NGram")
_PAGE_SIZES = (2, 4, 8, 16, 32, 64, 128, 256)
"""Powers of two greater than 1 (docs/source/features/kvcache.md)."""
TENSORRT_LLM: tuple[Row, ...] = (
    *OURS_ALONE,
    Row("enforce_eager", None, unless_set("enforce_eager", "Set cuda_graph_config to null for the same.")),
    *NO_QUEUE_CAP,
    Row("model", None, none("The first argument of trtllm-serve, above.")),
    Row("draft_model", "speculative_config.speculative_model", draft_path("exact", "A local checkpoint directory.")),
    Row("device", None, none("TensorRT-LLM runs on GPUs.")),
    Row("dtype", "dtype", lambda c: Mapped("exact" if c.dtype != "auto" else "approximate", "Compute dtype.", c.dtype)),
    Row(
        "weight_dtype",
        None,
        unless_set("weight_dtype", "Quantise the checkpoint (ModelOpt W8A16, W4A16) and serve that."),
    ),
    Row("load_format", None, unless_set("load_format", "A measurement of speed: deploy real weights.")),
    Row("num_threads", None, none("A CPU setting.")),
    Row("seed", None, none("TensorRT-LLM takes a seed with each request.")),
    Row("max_model_len", "max_seq_len", lambda c: Mapped("exact", "Prompt plus output.", model_limit(c))),
    Row("prompt_truncation", None, unless_set("prompt_truncation", "A prompt that is too long is refused.")),
    Row("max_num_seqs", "max_batch_size", same("max_num_seqs", "Sequences in one step.")),
    Row("max_num_batched_tokens", "max_num_tokens", same("max_num_batched_tokens", "Token budget of one step.")),
    Row("prefill_chunk_size", None, _chunk),
    Row("itl_target", None, unless_set("itl_target", "Lower max_num_tokens until ITL holds.")),
    Row("scheduling_policy", "scheduler_config.capacity_scheduler_policy", _policy),
    Row("watermark", None, unless_set("watermark", "GUARANTEED_NO_EVICT is TensorRT-LLM's rule for the same aim.")),
    Row("block_size", "kv_cache_config.tokens_per_block", page_size("TensorRT-LLM", _PAGE_SIZES)),
    Row("kv_cache_dtype", "kv_cache_config.dtype", stored_kv("TensorRT-LLM", _KV_DTYPES)),
    Row("kv_cache_memory_bytes", "kv_cache_config.max_gpu_total_bytes", _pool),
    Row("kv_window", "kv_cache_config.max_attention_window", _window),
    Row("kv_sink_tokens", "kv_cache_config.sink_token_length", _sinks),
    Row(
        "kv_heavy_tokens",
        None,
        unless_set("kv_heavy_tokens", "Dropped: old tokens outside the window are lost. Check quality."),
    ),
    Row(
        "enable_prefix_caching",
        "kv_cache_config.enable_block_reuse",
        same("enable_prefix_caching", "Requests share the pages of common beginnings."),
    ),
    Row("num_speculative_tokens", "speculative_config.max_draft_len", depth("Tokens guessed a step.")),
    Row("speculative_method", "speculative_config.decoding_type", speculation(_DRAFT_TARGET, _NGRAM)),
    Row("prompt_lookup_min", None, unless_set("prompt_lookup_min", "n-grams are not bounded from below.")),
    Row(
        "prompt_lookup_max",
        "speculative_config.max_matching_ngram_size",
        lookup_length("Longest n-gram."),
    ),
    Row("speculation_adaptive", "speculative_config.acceptance_rate_window_size", _adaptive),
    Row("speculation_min_acceptance", "speculative_config.acceptance_rate_threshold", _min_acceptance),
)
