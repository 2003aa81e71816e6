"""What the engine knows of one request: its tokens, its pages and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import msgspec

from engine.speculative.ngram import NgramIndex

FinishReason = Literal["stop", "length", "abort"]


MIN_TEMPERATURE = 1e-5
"""Below it sampling is greedy."""


UNKNOWN = -1
"""Stands in an output for the token of a step that is in flight."""


REPETITION_PENALTIES = (0.01, 100.0)
"""Beyond them logits could leave float32's range."""


class SequenceStatus(Enum):
    """WAITING holds no pages; a preempted sequence is WAITING again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class ListedTokens:
    """Tokens whose log-probabilities are wanted at each forced position: `count` of them, the likeliest ones or, given
    `ids` (int32, little-endian, count for each forced token in turn), these."""

    count: int
    ids: bytes = b""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 switch these filters off.

    repetition_penalty (1: none) divides the positive logits of tokens in prompt or output and multiplies the negative
    ones; frequency_penalty is subtracted once for each time a token is in the output, presence_penalty once if it is
    there at all; logit_bias: (token, what is added to its logit). They bind greedy requests too.
    logprobs: tell those of the chosen tokens, and top_logprobs: how many of the likeliest tokens beside each.
    forced: tokens that are fed through the decode path instead of sampled ones; the engine returns their
    log-probabilities (the /score endpoint). max_tokens is then their number. listed: of which other tokens too.
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    forced: tuple[int, ...] | None = None
    listed: ListedTokens | None = None

    @property
    def greedy(self) -> bool:
        """Temperature 0, or so close to it that logits divided by it would leave float32's range."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def penalised(self) -> bool:
        """Whether logits change before the likeliest token is looked for."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty or self.logit_bias)

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1, given {self.max_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature: expected at least 0, given {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], given {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k: expected at least 0, given {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p: expected a number in [0, 1], given {self.min_p}")
        low, high = REPETITION_PENALTIES
        if not low <= self.repetition_penalty <= high:
            raise ValueError(
                f"repetition_penalty: expected a number in [{low}, {high}], given {self.repetition_penalty}"
            )


@dataclass(slots=True, eq=False)
class Sequence:
    """A request inside the engine. Positions are 0-based; token i sits at position i.

    priority: lower goes first where the policy asks. tenant: who is charged for it under fair scheduling.
    output: tokens; the last one may be UNKNOWN. num_tokens: prompt and output together; `append` keeps it.
    num_overtaken: requests behind it in the queue that were admitted before it.
    num_computed: leading tokens whose keys and values are in the target's cache.
    num_draft_computed: the same for the draft model's cache.
    block_table: page of each block of positions; None where the page was evicted or never held.
    ngrams: of the leading tokens, for speculative_method ngram.
    block_hashes: names of its leading full blocks, as far as they were asked for. num_published: leading blocks of the
    table that the prefix cache knows or was offered. page_masses: attention paid to blocks of the table so far, summed
    over queries, heads and layers (kv_heavy_tokens).
    """

    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    arrival: int
    seed: int = 0
    priority: int = 0
    tenant: str = ""
    was_admitted: bool = False
    num_overtaken: int = 0
    status: SequenceStatus = SequenceStatus.WAITING
    output: list[int] = field(default_factory=list)
    block_table: list[int | None] = field(default_factory=list)
    num_computed: int = 0
    num_draft_computed: int = 0
    ngrams: NgramIndex | None = None
    block_hashes: list[bytes] = field(default_factory=list)
    num_published: int = 0
    page_masses: dict[int, float] = field(default_factory=dict)
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_tokens = len(self.prompt) + len(self.output)

    def append(self, tokens: Ids[int]) -> None:
        """Extend the output."""
        self.output.extend(tokens)
        self.num_tokens += len(tokens)

    @property
    def num_forced_left(self) -> int:
        """Forced tokens not yet appended to the output."""
        return len(self.params.forced or ()) - len(self.output)

    def tokens(self, start: int, end: int) -> list[int]:
        """Tokens at positions [start, end) of prompt and output together."""
        split = len(self.prompt)
        head = self.prompt[start : min(end, split)] if start < split else ()
        tail = self.output[max(start - split, 0) : end - split] if end > split else []
        return [*head, *tail]


class SequenceOutput(msgspec.Struct, frozen=True, gc=False):
    """What one step produced for one request. logprobs and top_logprobs run parallel to tokens (empty unless asked).

    top_logprobs: (token, log-probability) of the likeliest tokens at each position, at least as many as were asked for
    and never none, so that flips against forced tokens can be counted. listed_ids, listed_logprobs: what
    SamplingParams.listed asked for, see engine.layers.listing. num_drafted, num_accepted: guesses verified, and those
    that stood.
    """

    request_id: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    listed_ids: bytes = b""
    listed_logprobs: bytes = b""
    finish_reason: FinishReason | None = None
    num_drafted: int = 0
    num_accepted: int = 0


class EngineStats(msgspec.Struct, frozen=True):
    """Counters since start (num_* totals) and gauges of this moment. prefix_cache_*: tokens.

    accepted_tokens_per_pos: of guess 1, 2, …; spec_depth: guesses a sequence in the present step; spec_fallbacks: times
    the controller stopped guessing.
    """

    running: int = 0
    waiting: int = 0
    blocks_total: int = 0
    blocks_free: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    evicted_blocks: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_tokens_per_pos: tuple[int, ...] = ()
    spec_depth: int = 0
    spec_fallbacks: int = 0
