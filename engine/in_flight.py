"""A step in flight: launched, and the next one is scheduled before its tokens are known (async_scheduling).

All that scheduling needs of a launched step is known but its tokens: how far each sequence has come, which pages it
leaves, whether it has all its tokens. So the step is counted when it is launched, with UNKNOWN for each token, and
the schedule is that of an engine that waits. Pages given back by then may belong to the next step's sequences: the
device computes steps one after another, in the order of their launches, so what step N reads and writes is over before
step N + 1 writes. A stop token is the one surprise. Its sequence has a row in the step after, whose result is dropped.
"""

from __future__ import annotations

import msgspec

from engine.config import EngineConfig
from engine.runner import Pending
from engine.scheduler import ScheduledSequence
from engine.sequence import FinishReason


class InFlight(msgspec.Struct, gc=False):
    """began: when its scheduling did; launched: when that was done. Seconds."""

    step: list[ScheduledSequence]
    pending: Pending
    began: float
    launched: float


def needs_host(step: list[ScheduledSequence], config: EngineConfig) -> bool:
    """Whether the host must have a step's results before it schedules the next one.

    num_speculative_tokens: where the next rows are depends on how many guesses stood.
    kv_heavy_tokens: which pages the next step reads depends on the attention that this one paid them.
    penalties, logit bias: the next logits change with counts of the output, which the host makes.
    forced (/score): several tokens a step, which the bookkeeping of a step in flight has no room for.
    """
    if config.num_speculative_tokens or config.kv_heavy_tokens:
        return True
    every = [item.sequence.params for item in step]
    return any(params.forced is not None or params.penalised for params in every)


def reveal(item: ScheduledSequence, tokens: tuple[int, ...]) -> FinishReason | None:
    """Put the one token of a row that has landed in its place; why its sequence ends with it, if it does."""
    (token,) = tokens
    sequence, params = item.sequence, item.sequence.params
    index = item.start + item.num_tokens - len(sequence.prompt)
    sequence.output[index] = token
    if token in params.stop_token_ids and not params.ignore_eos:
        return "stop"
    return "length" if index + 1 == params.max_tokens else None
