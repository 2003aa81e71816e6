"""The runner on real hardware: a step -> tensors -> logits -> tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.cuda_graphs import Capture, CudaCapture
from engine.kernels.operations import Backend, load_operations
from engine.kernels.reference import PagedTensor
from engine.kv_cache import narrower
from engine.layers.attention import AttentionInput, Span
from engine.llm_engine import LLMEngine
from engine.memory import available_host_bytes, plan_pool
from engine.models.config import ModelConfig, read_model_config
from engine.models.size import weight_bytes
from engine.paged_model import PagedModel
from engine.row_results import ResultsToCome, TokensToCome
from engine.runner import Pending
from engine.sampled_tokens import SampledTokens
from engine.scheduler import USUAL_DRAFT_LAG, ScheduledSequence
from engine.speculative.draft_model import Drafter
from engine.speculative.prompt_lookup import PromptLookup, known
from engine.speculative.proposal import Guesses
from engine.speculative.verification import choosers, verify
from engine.weights import load_model

Cache = list[tuple[PagedTensor, PagedTensor]]
FP8_CAPABILITY = (8, 9)
"""The first NVIDIA GPUs that convert float8 themselves (Ada), as the attention kernel has it."""


def load_engine(config: EngineConfig) -> LLMEngine:
    """Load the weights and build the engine. Raises ValueError for a checkpoint or setting it cannot serve."""
    return LLMEngine(config, ModelRunner(config))


class ModelRunner:
    """Owns the weights and the page pool. num_blocks: pages that kv_cache_memory_bytes buys.

    model_window: tokens that the model's own attention sees, or None. compute_dtype: what `dtype` auto became.
    new_capture: what captures decode steps in place of CUDA graphs; kernels alone can be captured.
    """

    def __init__(self, config: EngineConfig, new_capture: Callable[[], Capture] | None = None) -> None:
        torch.set_num_threads(config.num_threads)
        self._device = torch.device(_device_name(config))
        self.asynchronous = self._device.type == "cuda"
        self.compute_dtype = _dtype_name(config, self._device)
        self._dtype = getattr(torch, self.compute_dtype)
        self._backend = _backend(config, self._device)
        self._operations = load_operations(self._backend, self._device)
        shape, draft_shape = _read_shapes(config)
        self.max_model_len = _max_model_len(config, shape, draft_shape)
        self.model_window = shape.window
        self._check_weights(config, [s for s in (shape, draft_shape) if s is not None])
        load = partial(
            load_model,
            max_len=self.max_model_len,
            config=config,
            device=self._device,
            dtype=self._dtype,
            operations=self._operations,
        )
        self._model = load(Path(config.model), shape)
        self._draft_model = None
        if config.draft_model is not None and draft_shape is not None:
            self._draft_model = load(Path(config.draft_model), draft_shape)
        self._config = config
        self._new_capture = new_capture or (CudaCapture if self._device.type == "cuda" else None)
        self._pool_bytes = 0
        self._models: list[PagedModel] = []
        self._drafter: Drafter | PromptLookup | None = None
        self._sampled = SampledTokens()
        self._build_cache(config)

    @property
    def on_cpu(self) -> bool:
        return self._device.type == "cpu"

    def _check_weights(self, config: EngineConfig, shapes: list[ModelConfig]) -> None:
        precision = (self.compute_dtype, config.weight_dtype, config.weight_group_size, self._device.type == "cpu")
        needed = sum(weight_bytes(shape, *precision) for shape in shapes)
        if needed > (available := self._available_bytes()):
            raise ValueError(f"model: the weights need {needed} bytes, there are {available}; see weight_dtype")

    def reconfigure(self, config: EngineConfig) -> None:
        """Rebuild the page pool when a setting of cost "cache" changed; weights stay loaded.

        Raises ValueError, with everything as it was, when the new pool would hold no page or does not fit.
        """
        if self._config.cost_of(config) == "cache":
            self._build_cache(config)
        elif self._config.max_num_seqs != config.max_num_seqs:
            self._use_graphs(config)
        self._config = config

    def _build_cache(self, config: EngineConfig) -> None:
        if config.kv_heavy_tokens and self.model_window is not None:
            raise ValueError(
                f"kv_heavy_tokens: the model's own window of {self.model_window} tokens keeps no older ones"
            )
        shapes = [self._model.config]
        if config.uses_draft_model:
            assert self._draft_model is not None, "EngineConfig admits this method only with a draft model"
            shapes.append(self._draft_model.config)
        pool = plan_pool(config, shapes, self.compute_dtype)
        self._drop_graphs()
        pool.check(self._available_bytes() + self._pool_bytes)
        self._check_pages(pool.kv_dtype)
        self.num_blocks, self._pool_bytes = pool.pages, pool.pool_bytes
        # The old pool goes first: two at once might not fit.
        self._models, self._drafter = [], None
        caches = [self._allocate(shape, pool.kv_dtype, config.block_size) for shape in shapes]
        visible = narrower(config.kv_window, config.kv_sink_tokens, self.model_window)
        sees_all_held = config.kv_heavy_tokens > 0
        self._models.append(
            PagedModel(self._model, caches[0], config.block_size, *((None, 0) if sees_all_held else visible))
        )
        if self._draft_model is not None and len(caches) == 2:
            # The draft sees no more than the target, whose window decides which pages are kept.
            visible = narrower(*visible, self._draft_model.config.window)
            self._models.append(PagedModel(self._draft_model, caches[1], config.block_size, *visible))
            self._drafter = Drafter(self._models[1])
        elif config.num_speculative_tokens:
            self._drafter = PromptLookup(self._device)
        self._use_graphs(config)

    def _use_graphs(self, config: EngineConfig) -> None:
        """For decode, verification, and the draft's catching up and guessing; steps that weigh pages have none."""
        if self._new_capture is None or self._backend != "triton" or config.enforce_eager or config.kv_heavy_tokens:
            return
        capture = self._new_capture()
        rows = (1 + config.num_speculative_tokens, USUAL_DRAFT_LAG)
        for paged, most in zip(self._models, rows, strict=False):
            paged.use_graphs(capture, config.max_num_seqs, most, self.max_model_len)

    def _drop_graphs(self) -> None:
        """So that their memory counts as free; what is still needed of them is captured again."""
        if self._new_capture is not None:
            capture = self._new_capture()
            for paged in self._models:
                if paged.graphs is not None:
                    paged.graphs.restart(capture)
            torch.cuda.empty_cache()

    def _check_pages(self, kv_dtype: str) -> None:
        kernels = self._device.type == "cuda" and self._backend == "triton"
        if kv_dtype == "fp8_e4m3" and kernels and torch.cuda.get_device_capability(self._device) < FP8_CAPABILITY:
            raise ValueError("kv_cache_dtype: fp8_e4m3 in kernels needs a GPU of capability 8.9 or more; use int8")

    def _available_bytes(self) -> int:
        return torch.cuda.mem_get_info(self._device)[0] if self._device.type == "cuda" else available_host_bytes()

    def _allocate(self, shape: ModelConfig, dtype: str, block_size: int) -> Cache:
        size = (self.num_blocks, block_size, shape.kv_heads, shape.head_dim, self._device)
        return [(PagedTensor.empty(dtype, *size), PagedTensor.empty(dtype, *size)) for _ in range(shape.layers)]

    @torch.inference_mode()
    def launch(self, step: list[ScheduledSequence]) -> Pending:
        """One forward pass (and the draft model's, when it speculates). It does not wait for the device."""
        drafter = self._drafter
        guesses = drafter.propose(step, self._config) if drafter else known([[]] * len(step), self._device)
        beside = [_forced(item) or tokens for item, tokens in zip(step, guesses.tokens, strict=True)]
        spans = [
            Span(i.sequence, i.start, i.sequence.tokens(i.start, i.start + i.num_tokens) + tokens)
            for i, tokens in zip(step, beside, strict=True)
        ]
        weigh = self._config.kv_heavy_tokens > 0
        prepared = self._models[0].prepare(spans, weigh)
        if drafter is None:
            self._sampled.fill(prepared.batch, spans)
        else:
            guesses.fill(prepared.batch, spans)
        rows, counts = _sampled_rows(step, beside, prepared.batch.first_rows)
        logits = self._models[0].logits(prepared.run(), rows)
        return self._choose(step, guesses, logits, counts, prepared.batch if weigh else None)

    def _choose(
        self,
        step: list[ScheduledSequence],
        guesses: Guesses,
        logits: Tensor,
        counts: list[int],
        weighed: AttentionInput | None,
    ) -> Pending:
        members = choosers(step, counts)
        choice = verify(members, guesses, logits, self._config.synthetic_acceptance, self._operations.sample)
        if self._drafter is None:
            self._sampled.keep([member.sequence for member in members], choice.tokens[:, 0])
        every = [item.sequence.params for item in step]
        if self._drafter or weighed or any(params.logprobs or params.forced is not None for params in every):
            return ResultsToCome(step, guesses, logits, counts, choice, weighed)
        return TokensToCome(step, choice.tokens[:, 0])


def _forced(item: ScheduledSequence) -> list[int]:
    """Tokens to verify beside the next one that are forced."""
    done = len(item.sequence.output)
    return list((item.sequence.params.forced or ())[done : done + item.num_drafts])


def _sampled_rows(
    step: list[ScheduledSequence], beside: list[list[int]], first_rows: list[int]
) -> tuple[list[int], list[int]]:
    """Flat rows whose logits are wanted, and how many of them belong to each scheduled sequence."""
    rows: list[int] = []
    counts = []
    for item, tokens, first in zip(step, beside, first_rows, strict=True):
        last = first + item.num_tokens - 1
        wanted = range(last, last + 1 + len(tokens)) if item.samples else range(0)
        rows += wanted
        counts.append(len(wanted))
    return rows, counts


def _device_name(config: EngineConfig) -> str:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, torch sees no GPU; use cpu or auto")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def _dtype_name(config: EngineConfig, device: torch.device) -> str:
    if config.dtype == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return config.dtype


def _backend(config: EngineConfig, device: torch.device) -> Backend:
    if config.attention_backend == "auto":
        return "triton" if device.type == "cuda" else "torch"
    return config.attention_backend


def _read_shapes(config: EngineConfig) -> tuple[ModelConfig, ModelConfig | None]:
    shape = read_model_config(Path(config.model))
    if config.draft_model is None:
        return shape, None
    draft = read_model_config(Path(config.draft_model))
    if draft.vocab_size != shape.vocab_size:
        raise ValueError(f"draft_model: its vocabulary has {draft.vocab_size} tokens, the model's {shape.vocab_size}")
    return shape, draft


def _max_model_len(config: EngineConfig, shape: ModelConfig, draft: ModelConfig | None) -> int:
    trained = min(s.max_positions for s in (shape, draft) if s is not None)
    if config.max_model_len is not None and config.max_model_len > trained:
        raise ValueError(f"max_model_len: {config.max_model_len} exceeds the trained context of {trained} tokens")
    return config.max_model_len or trained
