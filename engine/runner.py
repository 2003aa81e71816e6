"""What LLMEngine asks of whoever computes its steps."""

from __future__ import annotations

from typing import Protocol

import msgspec

from engine.config import EngineConfig
from engine.scheduler import ScheduledSequence


class RowResult(msgspec.Struct, frozen=True, gc=False):
    """What the runner found for one scheduled sequence.

    tokens: accepted drafts and then one more token; empty when the row does not sample. logprobs, top_logprobs,
    listed_ids, listed_logprobs: see SequenceOutput. num_drafted: proposals that were verified. num_draft_computed:
    positions now in the draft model's cache. page_masses: see BlockManager.weigh; empty without kv_heavy_tokens.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    num_drafted: int = 0
    num_draft_computed: int = 0
    listed_ids: bytes = b""
    listed_logprobs: bytes = b""
    page_masses: tuple[float, ...] = ()


class Pending(Protocol):
    """A launched step."""

    def collect(self) -> list[RowResult]:
        """Its results, parallel to the step; waits until they are computed. Once for each launch, in order."""


class Computed(msgspec.Struct, frozen=True, gc=False):
    """A step that was over when its launch returned."""

    results: list[RowResult]

    def collect(self) -> list[RowResult]:
        """See Pending."""
        return self.results


class Runner(Protocol):
    """Turns steps into tokens, in the order in which they are launched.

    A step may be launched before the one before it is collected. Where its sequences end in UNKNOWN, the token is the
    one that the step before samples for them.

    max_model_len: tokens; num_blocks: pages the pool holds under the present config. model_window: tokens that the
    model's own attention sees, or None. asynchronous: whether `launch` returns before the step is computed.
    """

    max_model_len: int
    model_window: int | None
    num_blocks: int
    asynchronous: bool

    def launch(self, step: list[ScheduledSequence]) -> Pending: ...

    def reconfigure(self, config: EngineConfig) -> None: ...
