"""EngineConfig: every setting of the engine once, with unit, range and the cost of changing it.

The search space, the engine's --help text and the documentation table are generated from these fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from engine.yaml_file import read_mapping, refuse_truth

KVCacheDtype = Literal["auto", "float32", "bfloat16", "float16", "fp8_e4m3", "int8", "int4"]
ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]
WeightDtype = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]
ReconfigurationCost = Literal["hot", "cache", "process"]

COSTS: tuple[ReconfigurationCost, ...] = ("hot", "cache", "process")
"""From cheap to dear. hot: the next step. cache: the KV pool is rebuilt. process: a new process."""


def _knob(default: Any, cost: ReconfigurationCost, unit: str, description: str, **bounds: Any) -> Any:
    extra: dict[str, JsonValue] = {"cost": cost, "unit": unit}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


class EngineConfig(BaseModel):
    """Configuration of one engine process. Frozen; a change is a new object (`model_copy` or `updated`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = _knob(
        ..., "process", "directory", "Hugging Face checkpoint: config.json, *.safetensors, tokenizer.json."
    )
    draft_model: str | None = _knob(
        None, "process", "directory", "Checkpoint of the draft model for speculation; same tokenizer as `model`."
    )
    device: Literal["auto", "cpu", "cuda"] = _knob(
        "auto", "process", "device", "Where tensors live; auto takes a GPU if present."
    )
    dtype: ComputeDtype = _knob(
        "auto", "process", "dtype", "Weights and activations; auto: bfloat16 on a GPU, float32 on a CPU."
    )
    attention_backend: Literal["auto", "torch", "triton"] = _knob(
        "auto",
        "process",
        "backend",
        "What computes attention and the small layers around it: torch, or kernels in Triton; auto: triton on a GPU, "
        "torch on a CPU.",
    )
    enforce_eager: bool = _knob(
        False,
        "cache",
        "switch",
        "Launch each kernel of each step; else, with triton on a GPU, decode and verify steps are captured as CUDA "
        "graphs when they first come, and replayed.",
    )
    weight_dtype: WeightDtype = _knob(
        "auto",
        "process",
        "dtype",
        "Stored weights of the linear layers; auto: the compute dtype, or as a quantised checkpoint has them. int8: a "
        "scale per output channel; int4: a scale and a zero point per group.",
    )
    weight_group_size: Literal[32, 64, 128] = _knob(
        64, "process", "inputs", "Inputs of a linear layer that share a scale with weight_dtype int4."
    )
    load_format: Literal["auto", "dummy"] = _knob(
        "auto", "process", "format", "auto: safetensors; dummy: random weights of the shapes in config.json, by `seed`."
    )
    num_threads: int = _knob(1, "process", "threads", "Intra-op threads of torch on the CPU.", ge=1, le=256)
    seed: int = _knob(0, "hot", "integer", "Seed of requests that bring none.", ge=0, le=2**63 - 1)
    max_model_len: int | None = _knob(
        None, "process", "tokens", "Longest prompt plus output; none: max_position_embeddings of the model.", ge=1
    )
    prompt_truncation: Literal["refuse", "keep_tail", "keep_head_and_tail"] = _knob(
        "refuse",
        "hot",
        "policy",
        "A prompt beyond max_model_len less the tokens asked for: refuse it, keep its last tokens (and a special first "
        "one), or keep half from each end.",
    )
    max_num_seqs: int = _knob(16, "hot", "sequences", "Sequences that may run in one step.", ge=1, le=4096)
    max_num_batched_tokens: int = _knob(
        512, "hot", "tokens", "Token budget of one step, decodes and prefill chunks together.", ge=1, le=1_048_576
    )
    prefill_chunk_size: int | None = _knob(
        None, "hot", "tokens", "Most prompt tokens of one sequence in one step; none: the whole token budget.", ge=1
    )
    itl_target: float | None = _knob(
        None,
        "hot",
        "seconds",
        "Prefill chunks are cut so that a step with running streams stays inside it, by step times measured online; "
        "none: only the token budget bounds them.",
        gt=0,
    )
    async_scheduling: bool | None = _knob(
        None, "hot", "switch", "Schedule the next step while one is computed; none: where the device is a GPU."
    )
    scheduling_policy: Literal["fcfs", "priority", "fair"] = _knob(
        "fcfs",
        "hot",
        "policy",
        "Who goes next and who is preempted last: the earliest arrival; the lowest `priority` of a request; the tenant "
        "(header X-Tenant, else `user`) that has had the least service.",
    )
    watermark: float = _knob(
        0.0, "hot", "share of pages", "KV pages that admission leaves free for the growth of what runs.", ge=0, lt=1
    )
    max_skip_ahead: int = _knob(
        0,
        "hot",
        "requests",
        "Requests that may go before a waiting one whose prompt does not fit yet; 0: everybody keeps their place.",
        ge=0,
        le=1024,
    )
    max_queued_requests: int | None = _knob(
        None, "hot", "requests", "Requests that may wait; further ones get HTTP 429. none: no limit.", ge=0
    )
    max_queued_tokens: int | None = _knob(
        None, "hot", "tokens", "Prompt tokens that may wait; a request beyond gets HTTP 429. none: no limit.", ge=1
    )
    block_size: int = _knob(16, "cache", "tokens", "Tokens in one page of the KV cache.", ge=1, le=256)
    kv_cache_dtype: KVCacheDtype = _knob(
        "auto",
        "cache",
        "dtype",
        "Stored keys and values; auto: the compute dtype. fp8_e4m3, int8 and int4 keep a scale per token and head.",
    )
    kv_cache_memory_bytes: int = _knob(
        256 * 2**20, "cache", "bytes", "Memory of the page pool, scales and the draft model's pages included.", ge=1
    )
    kv_window: int | None = _knob(
        None,
        "cache",
        "tokens",
        "Recent tokens a query may see besides the sinks; none: all. Pages outside are freed.",
        ge=1,
    )
    kv_sink_tokens: int = _knob(4, "cache", "tokens", "First tokens that stay visible when kv_window is set.", ge=0)
    kv_heavy_tokens: int = _knob(
        0,
        "cache",
        "tokens",
        "Tokens older than kv_window that stay, in the whole pages that drew the most attention; 0: none.",
        ge=0,
    )
    enable_prefix_caching: bool = _knob(
        False,
        "cache",
        "switch",
        "Requests that begin with the same tokens share the pages of their common full blocks.",
    )
    num_speculative_tokens: int = _knob(
        0, "cache", "tokens", "Tokens guessed for each sequence a step; 0: no speculation, no draft cache.", ge=0, le=16
    )
    speculative_method: Literal["draft_model", "ngram"] = _knob(
        "draft_model",
        "cache",
        "method",
        "Who guesses: `draft_model`, or ngram, which copies what followed the same tokens earlier in the sequence and "
        "needs neither a draft model nor its pages.",
    )
    prompt_lookup_min: int = _knob(
        2, "hot", "tokens", "Shortest n-gram that ngram looks for; at most prompt_lookup_max.", ge=1, le=32
    )
    prompt_lookup_max: int = _knob(4, "hot", "tokens", "Longest n-gram that ngram looks for; tried first.", ge=1, le=32)
    speculation_adaptive: bool = _knob(
        False,
        "hot",
        "switch",
        "Choose from 0 to num_speculative_tokens in each step what measured acceptance and step times say is fastest; "
        "else always num_speculative_tokens.",
    )
    speculation_min_acceptance: float = _knob(
        0.0,
        "hot",
        "share",
        "Of its guesses a depth must be expected to keep this share, or speculation_adaptive does not use it.",
        ge=0,
        le=1,
    )
    synthetic_acceptance: float | None = _knob(
        None,
        "hot",
        "probability",
        "For measuring speed only: each guess stands with this probability whatever the model says, so the text is not "
        "the model's. None: real verification.",
        ge=0,
        le=1,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth(cls, value: Any, info: Any) -> Any:
        refuse_truth(value, cls.model_fields[info.field_name].annotation)
        return value

    @field_validator("*")
    @classmethod
    def _fits_in_64_bits(cls, value: Any) -> Any:
        if isinstance(value, int) and value >= 2**63:
            raise ValueError(f"expected less than 2**63, given {value}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> EngineConfig:
        if self.uses_draft_model and self.draft_model is None:
            raise ValueError(
                "num_speculative_tokens: needs draft_model, which is not set; set it, or speculative_method ngram, or 0"
            )
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ValueError(
                f"prompt_lookup_min: {self.prompt_lookup_min} is above prompt_lookup_max {self.prompt_lookup_max}"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens: {self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}; "
                "a step must hold one token of each running sequence"
            )
        return self

    @model_validator(mode="after")
    def _heavy_hitters(self) -> EngineConfig:
        if not self.kv_heavy_tokens:
            return self
        if self.kv_window is None:
            raise ValueError("kv_heavy_tokens: needs kv_window, which is not set; without it nothing is evicted")
        if self.kv_heavy_tokens < self.block_size:
            raise ValueError(
                f"kv_heavy_tokens: {self.kv_heavy_tokens} is less than a page of {self.block_size} tokens (block_size)"
            )
        # What is evicted would depend on guesses, or on attention that a hit skips: other tokens than without them.
        for name in ("num_speculative_tokens", "enable_prefix_caching"):
            if getattr(self, name):
                raise ValueError(f"kv_heavy_tokens: cannot be combined with {name}; set one of them to 0")
        return self

    @property
    def uses_draft_model(self) -> bool:
        """Whether a page holds keys and values of the draft model too."""
        return self.num_speculative_tokens > 0 and self.speculative_method == "draft_model"

    def updated(self, changes: Mapping[str, Any]) -> EngineConfig:
        """A validated copy with `changes` applied. Raises ValueError naming the field."""
        return parse_config({**self.model_dump(), **changes}, source="reconfiguration")

    def cost_of(self, other: EngineConfig) -> ReconfigurationCost | None:
        """The dearest cost among the fields in which `other` differs; None when nothing differs."""
        differing = [knob.cost for knob in knobs() if getattr(self, knob.name) != getattr(other, knob.name)]
        return max(differing, key=COSTS.index, default=None)


class Knob(NamedTuple):
    """One field of EngineConfig as a tuner or a reader sees it."""

    name: str
    unit: str
    cost: ReconfigurationCost
    description: str
    default: Any
    json_schema: dict[str, Any]


@cache
def knobs() -> tuple[Knob, ...]:
    """All fields in declaration order, with their JSON Schema (type, range, choices)."""
    properties = EngineConfig.model_json_schema()["properties"]
    return tuple(
        Knob(name, prop["unit"], prop["cost"], prop["description"], prop.get("default"), prop)
        for name, prop in properties.items()
    )


def parse_config(values: Mapping[str, Any], source: str) -> EngineConfig:
    """Validate `values`. Raises ValueError with one line: the source, the key, what was expected, the nearest key."""
    try:
        return EngineConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ValueError(f"{source}: {_first_problem(error)}") from None


def load_config(path: Path) -> EngineConfig:
    """Read engine.yaml. Relative model directories are taken from the file's own directory."""
    values = read_mapping(path, "a mapping of settings")
    for key in ("model", "draft_model"):
        if isinstance(values.get(key), str):
            values[key] = str((path.parent / values[key]).resolve())
    return parse_config(values, source=str(path))


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, EngineConfig.model_fields, n=1)
        return f"{key}: unknown setting" + (f"; did you mean {near[0]}?" if near else "")
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if problem["type"] in ("missing", "value_error") else f" (given: {problem['input']!r})"
    return f"{key}: {message}{given}" if key else message
