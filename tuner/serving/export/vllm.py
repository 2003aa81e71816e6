"""EngineConfig in vLLM's words: one row a field, with how well it carries over.

Flag names: vLLM's serve arguments (docs.vllm.ai, v0.32.0).
"""

from __future__ import annotations

import json
from typing import Any

from engine.config import EngineConfig
from tuner.serving.export.mapping import (
    NO_WINDOW,
    OURS_ALONE,
    Fixed,
    Mapped,
    Row,
    batch_without_window,
    eager,
    model_limit,
    none,
    page_size,
    same,
    sequences_without_window,
)

_VLLM_BLOCK_SIZES = (1, 8, 16, 32, 64, 128, 256)


def vllm_fixed(config: EngineConfig) -> Fixed:
    fixed: Fixed = {
        "enable-chunked-prefill": (True, "the measured engine always mixes prefill chunks with decodes."),
    }
    if not config.enable_prefix_caching:
        note = (
            "the measured engine shared no prefixes between requests. Remove the line to let vLLM share them (its "
            "default): prompts with common beginnings then start sooner than was measured."
        )
        fixed["no-enable-prefix-caching"] = (True, note)
    return fixed


def _seed(config: EngineConfig) -> Mapped:
    return Mapped("approximate", "Another random stream: samples differ, greedy answers do not.", config.seed)


def _dtype(config: EngineConfig) -> Mapped:
    if config.dtype != "auto":
        return Mapped("exact", "Weights and activations.", config.dtype)
    return Mapped("approximate", "Our auto follows the device; vLLM's auto follows the checkpoint.", "auto")


def _weight_dtype(config: EngineConfig) -> Mapped:
    stored = config.weight_dtype
    if stored in ("auto", config.dtype):
        return Mapped("exact", "The checkpoint's linear layers as they are, or in the compute dtype.")
    note = (
        f"Measured with {stored} made at load. vLLM makes none of a dense checkpoint: quantise it with llm-compressor"
    )
    return Mapped("none", f"{note} (W8A16, W4A16) and serve that; without it the weights take more memory.")


def _max_model_len(config: EngineConfig) -> Mapped:
    if config.max_model_len is not None:
        return Mapped("exact", "Prompt plus output.", config.max_model_len)
    return Mapped("exact", "Not set in the study; read from the model's config.json.", model_limit(config))


def _prompt_truncation(config: EngineConfig) -> Mapped:
    if config.prompt_truncation == "refuse":
        return Mapped("exact", "vLLM refuses a prompt that is too long.")
    return Mapped("none", "A client may send truncate_prompt_tokens (the tail stays); vLLM refuses otherwise.")


def _prefill_chunk_size(config: EngineConfig) -> Mapped:
    if config.prefill_chunk_size is None:
        return Mapped("exact", "Not set: one prompt may take the whole budget, as by default in vLLM.")
    chunk = min(config.prefill_chunk_size, model_limit(config))
    note = "Bounds the chunk of a prompt longer than this; --max-num-batched-tokens bounds the step."
    return Mapped("approximate", note, chunk)


def _itl_target(config: EngineConfig) -> Mapped:
    if config.itl_target is None:
        return Mapped("exact", "Not set: steps are bounded by tokens, as in vLLM.")
    return Mapped("none", "vLLM bounds a step by tokens, not by time: lower --max-num-batched-tokens until ITL holds.")


def _scheduling_policy(config: EngineConfig) -> Mapped:
    if config.scheduling_policy == "fair":
        note = "vLLM has no fairness between tenants: a tenant that floods it delays the others; limit it in a gateway."
        return Mapped("none", note)
    return Mapped("exact", "Order of admission; the latest of the last rank is preempted.", config.scheduling_policy)


def _watermark(config: EngineConfig) -> Mapped:
    if not config.watermark:
        return Mapped("exact", "0: admission may fill the cache.", 0.0)
    return Mapped("approximate", "vLLM may count the pages that it promised otherwise.", config.watermark)


def _max_queued_requests(config: EngineConfig) -> Mapped:
    if config.max_queued_requests is None:
        return Mapped("exact", "No limit, as by default in vLLM.")
    note = "vLLM counts what runs as well, hence --max-num-seqs more; it answers 503 where we answer 429."
    return Mapped("approximate", note, config.max_queued_requests + sequences_without_window(config))


def _max_queued_tokens(config: EngineConfig) -> Mapped:
    if config.max_queued_tokens is None:
        return Mapped("exact", "No limit, as by default in vLLM.")
    note = "vLLM counts prompts that are being computed as well; it answers 503 where we answer 429."
    return Mapped("approximate", note, config.max_queued_tokens)


# kv_cache_dtype -> value of --kv-cache-dtype, fit, why.
_VLLM_KV_DTYPES: dict[str, Mapped] = {
    "auto": Mapped("exact", "Keys and values in the compute dtype.", "auto"),
    "float16": Mapped("exact", "Older vLLM takes auto with --dtype float16 only.", "float16"),
    "int8": Mapped("exact", "One scale per token and head on both sides.", "int8_per_token_head"),
    "int4": Mapped(
        "approximate",
        "One scale per token and head on both sides, rotated by a Hadamard matrix; vLLM has a zero point, which ours "
        "lacks. Check quality again.",
        "int4_per_token_head",
    ),
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


def _enable_prefix_caching(config: EngineConfig) -> Mapped:
    if config.enable_prefix_caching:
        return Mapped("exact", "Full blocks by chained hash, least recently used first out, on both sides.", True)
    return Mapped("exact", "Off: --no-enable-prefix-caching, below.")


def _draft_model(config: EngineConfig) -> Mapped:
    if config.uses_draft_model:
        return Mapped("exact", "Part of --speculative-config, below.")
    return Mapped("exact", "Not used: no draft model is loaded.")


def _num_speculative_tokens(config: EngineConfig) -> Mapped:
    if not config.num_speculative_tokens:
        return Mapped("exact", "0: no speculation.")
    speculative: dict[str, Any] = {
        "method": config.speculative_method,
        "num_speculative_tokens": config.num_speculative_tokens,
    }
    if config.uses_draft_model:
        speculative["model"] = config.draft_model
    else:
        speculative |= {"prompt_lookup_min": config.prompt_lookup_min, "prompt_lookup_max": config.prompt_lookup_max}
    return Mapped("exact", "Method and depth.", json.dumps(speculative, ensure_ascii=False))


def _part_of_speculative_config(config: EngineConfig) -> Mapped:
    if config.num_speculative_tokens:
        return Mapped("exact", "Part of --speculative-config.")
    return Mapped("exact", "Not used: no speculation.")


def _speculation_adaptive(config: EngineConfig) -> Mapped:
    if not (config.speculation_adaptive and config.num_speculative_tokens):
        return Mapped("exact", "Off: vLLM guesses as many tokens in every step, too.")
    return Mapped("none", "vLLM guesses as many tokens in every step, also where that does not pay.")


def _speculation_min_acceptance(config: EngineConfig) -> Mapped:
    if not (config.speculation_adaptive and config.num_speculative_tokens and config.speculation_min_acceptance):
        return Mapped("exact", "Not used.")
    return Mapped("none", "vLLM goes on guessing whatever share of its guesses stands.")


def _prompt_lookup(config: EngineConfig) -> Mapped:
    if not config.num_speculative_tokens or config.uses_draft_model:
        return Mapped("exact", "Not used: no n-grams are looked up.")
    note = "Part of --speculative-config. Of several places with the same n-gram vLLM may copy from another one."
    return Mapped("approximate", note)


VLLM: tuple[Row, ...] = (
    *OURS_ALONE,
    Row("enforce_eager", "enforce-eager", eager),
    *NO_WINDOW,
    Row("model", "model", same("model", "A local checkpoint directory.")),
    Row("draft_model", "speculative-config", _draft_model),
    Row("device", None, none("vLLM is built for one platform and uses that.")),
    Row("dtype", "dtype", _dtype),
    Row("weight_dtype", None, _weight_dtype),
    Row("load_format", "load-format", same("load_format", "The same words on both sides.")),
    Row("num_threads", None, none("On vLLM's CPU build set the environment variable VLLM_CPU_OMP_THREADS_BIND.")),
    Row("seed", "seed", _seed),
    Row("max_model_len", "max-model-len", _max_model_len),
    Row("prompt_truncation", None, _prompt_truncation),
    Row("max_num_seqs", "max-num-seqs", batch_without_window("vLLM")),
    Row(
        "max_num_batched_tokens",
        "max-num-batched-tokens",
        same("max_num_batched_tokens", "Token budget of one step; not below max_num_seqs, on both sides."),
    ),
    Row("prefill_chunk_size", "long-prefill-token-threshold", _prefill_chunk_size),
    Row("itl_target", None, _itl_target),
    Row("scheduling_policy", "scheduling-policy", _scheduling_policy),
    Row("watermark", "watermark", _watermark),
    Row("max_queued_requests", "max-num-queued-reqs", _max_queued_requests),
    Row("max_queued_tokens", "max-num-queued-tokens", _max_queued_tokens),
    Row("block_size", "block-size", page_size("vLLM", _VLLM_BLOCK_SIZES)),
    Row("kv_cache_dtype", "kv-cache-dtype", _kv_cache_dtype),
    Row(
        "kv_cache_memory_bytes",
        "kv-cache-memory-bytes",
        same("kv_cache_memory_bytes", "The page pool of one GPU; overrides --gpu-memory-utilization."),
    ),
    Row("enable_prefix_caching", "enable-prefix-caching", _enable_prefix_caching),
    Row("num_speculative_tokens", "speculative-config", _num_speculative_tokens),
    Row("speculative_method", "speculative-config", _part_of_speculative_config),
    Row("prompt_lookup_min", "speculative-config", _prompt_lookup),
    Row("prompt_lookup_max", "speculative-config", _prompt_lookup),
    Row("speculation_adaptive", None, _speculation_adaptive),
    Row("speculation_min_acceptance", None, _speculation_min_acceptance),
)
