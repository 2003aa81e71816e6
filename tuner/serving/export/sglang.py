"""EngineConfig in SGLang's words: one row a field, with how well it carries over.

Flag names: ServerArgs of sglang 0.5.20 (python -m sglang.launch_server --config FILE).
"""

from __future__ import annotations

from engine.config import EngineConfig
from tuner.serving.export.mapping import (
    NO_WINDOW,
    OURS_ALONE,
    Fixed,
    Mapped,
    Row,
    batch_without_window,
    depth,
    draft_path,
    eager,
    model_limit,
    none,
    same,
    speculation,
    stored_kv,
    unless_set,
)

_KV_DTYPES = {
    "auto": Mapped("exact", "Keys and values in the compute dtype.", "auto"),
    "bfloat16": Mapped("exact", "The same dtype.", "bfloat16"),
    "fp8_e4m3": Mapped(
        "approximate", "SGLang scales by layer, not by token and head. Check quality again.", "fp8_e4m3"
    ),
}


def _dtype(config: EngineConfig) -> Mapped:
    if config.dtype != "auto":
        return Mapped("exact", "Weights and activations.", config.dtype)
    return Mapped("approximate", "Our auto follows the device; SGLang's auto follows the checkpoint.", "auto")


def _token_budget(config: EngineConfig) -> Mapped:
    # check_server_args: "chunked_prefill_size must be divisible by page_size".
    pages = max(config.max_num_batched_tokens // config.block_size, 1)
    note = "SGLang's budget of one step for prompts, in whole pages; decodes come on top."
    return Mapped("approximate", note, pages * config.block_size)


def _pool(config: EngineConfig) -> Mapped:
    note = (
        "SGLang takes a share of the GPU for weights and pages together: set mem-fraction-static to what leaves this."
    )
    return Mapped("none", f"{config.kv_cache_memory_bytes} bytes of pages were measured. {note}")


def _scheduling_policy(config: EngineConfig) -> Mapped:
    if config.scheduling_policy == "fcfs":
        return Mapped("exact", "First come, first served (SGLang's own default is lpm).", "fcfs")
    if config.scheduling_policy == "priority":
        return Mapped("approximate", "With enable-priority-scheduling; low values go first there too.", "fcfs")
    return Mapped("none", "SGLang has no fairness between tenants; limit a flooding tenant in a gateway.", "fcfs")


def _prefix_caching(config: EngineConfig) -> Mapped:
    if config.enable_prefix_caching:
        return Mapped("exact", "On: SGLang's radix cache is its default.")
    return Mapped("exact", "Off, as measured; remove the line to let SGLang share prefixes.", True)


def _truncation(config: EngineConfig) -> Mapped:
    if config.prompt_truncation == "refuse":
        return Mapped("exact", "A prompt that is too long is refused.")
    return Mapped("none", "allow-auto-truncate cuts the prompt otherwise; it is left off.")


def _adaptive(config: EngineConfig) -> Mapped:
    if not (config.speculation_adaptive and config.num_speculative_tokens):
        return Mapped("exact", "Off.")
    # adaptive_unsupported_reason: with another algorithm the flag is taken back with a warning.
    return Mapped("none", "SGLang adapts the depth of EAGLE alone; it guesses as many tokens in every step.")


def sglang_name(model_name: str) -> str:
    """The name without colons, which SGLang keeps for `model:adapter` (check_server_args)."""
    return model_name.replace(":", "-")


def sglang_fixed(config: EngineConfig) -> Fixed:
    fixed: Fixed = {"enable-mixed-chunk": (True, "prompt chunks and decodes share steps, as measured.")}
    if config.num_speculative_tokens:
        # supports_mixed_chunk: neither STANDALONE nor NGRAM.
        note = "not with speculation in SGLang: streams stand still while prompts are computed, which they did not."
        fixed["enable-mixed-chunk"] = (None, note)
    if config.scheduling_policy == "priority":
        fixed["enable-priority-scheduling"] = (True, "priority of a request, lower values first.")
        fixed["schedule-low-priority-values-first"] = (True, "as vLLM and the measured engine read them.")
    if config.num_speculative_tokens:
        fixed["speculative-eagle-topk"] = (1, "one branch: SGLang wants the full triple.")
        fixed["speculative-num-draft-tokens"] = (config.num_speculative_tokens + 1, "steps + 1 with one branch.")
        if not config.uses_draft_model:
            note = "one branch, as measured; more of them want pages of one token, or flashinfer."
            fixed["speculative-ngram-max-bfs-breadth"] = (1, note)
    return fixed


_STANDALONE = Mapped("exact", "A draft model of its own.", "STANDALONE")
_NGRAM = Mapped("approximate", "Looks n-grams up in a table of past outputs, not in the request alone.", "NGRAM")
SGLANG: tuple[Row, ...] = (
    *OURS_ALONE,
    Row("enforce_eager", "disable-cuda-graph", eager),
    *NO_WINDOW,
    Row("model", "model-path", same("model", "A local checkpoint directory.")),
    Row("draft_model", "speculative-draft-model-path", draft_path("exact", "A local checkpoint directory.")),
    Row("device", None, none("SGLang takes the GPU that is there.")),
    Row("dtype", "dtype", _dtype),
    Row("weight_dtype", None, unless_set("weight_dtype", "Quantise the checkpoint (W8A16, W4A16) and serve that.")),
    Row("load_format", "load-format", same("load_format", "The same words on both sides.")),
    Row("num_threads", None, unless_set("num_threads", "Set OMP_NUM_THREADS on a CPU.")),
    Row("seed", "random-seed", lambda c: Mapped("approximate", "Another random stream.", c.seed)),
    Row("max_model_len", "context-length", lambda c: Mapped("exact", "Prompt plus output.", model_limit(c))),
    Row("prompt_truncation", None, _truncation),
    Row("max_num_seqs", "max-running-requests", batch_without_window("SGLang")),
    Row("max_num_batched_tokens", "chunked-prefill-size", _token_budget),
    Row("prefill_chunk_size", None, unless_set("prefill_chunk_size", "One prompt may take the whole step in SGLang.")),
    Row("itl_target", None, unless_set("itl_target", "Lower chunked-prefill-size until ITL holds.")),
    Row("scheduling_policy", "schedule-policy", _scheduling_policy),
    Row("watermark", None, unless_set("watermark", "schedule-conservativeness is SGLang's rule; raise it instead.")),
    Row(
        "max_queued_requests", "max-queued-requests", same("max_queued_requests", "It answers 503 where we answer 429.")
    ),
    Row("max_queued_tokens", None, unless_set("max_queued_tokens", "SGLang caps the queue by requests only.")),
    Row("block_size", "page-size", same("block_size", "Tokens in a page.")),
    Row("kv_cache_dtype", "kv-cache-dtype", stored_kv("SGLang", _KV_DTYPES)),
    Row("kv_cache_memory_bytes", None, _pool),
    Row("enable_prefix_caching", "disable-radix-cache", _prefix_caching),
    Row("num_speculative_tokens", "speculative-num-steps", depth("Steps of the draft; one branch each, below.")),
    Row("speculative_method", "speculative-algorithm", speculation(_STANDALONE, _NGRAM)),
    Row("prompt_lookup_min", None, unless_set("prompt_lookup_min", "SGLang bounds no n-grams from below.")),
    Row(
        "prompt_lookup_max",
        None,
        unless_set("prompt_lookup_max", "speculative-ngram-max-trie-depth is another measure."),
    ),
    Row("speculation_adaptive", None, _adaptive),
    Row("speculation_min_acceptance", None, unless_set("speculation_min_acceptance", "SGLang has no such floor.")),
)
