"""What the API process and the step-loop process say to each other: msgspec structs, length-prefixed.

A frame is a 4-byte big-endian length and a MessagePack body. No pickle.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.sequence import EngineStats, SamplingParams, SequenceOutput


class Add(msgspec.Struct, frozen=True, tag=True):
    """Start a request. prompt: token ids. priority, tenant: for the scheduling policy."""

    request_id: str
    prompt: list[int]
    params: SamplingParams
    priority: int = 0
    tenant: str = ""


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Forget a request; no further output for it is sent."""

    request_id: str


class Reconfigure(msgspec.Struct, frozen=True, tag=True):
    """Apply these EngineConfig fields. Answered by Reconfigured with the same token."""

    token: int
    changes: dict[str, Any]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded. max_model_len in tokens; blocks: pages in the pool."""

    max_model_len: int
    blocks: int


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """Everything one step produced, and the counters after it. begun: requests that left the queue in this step."""

    outputs: list[SequenceOutput]
    stats: EngineStats
    begun: list[str] = []


class Rejected(msgspec.Struct, frozen=True, tag=True):
    """A request that can never run with this configuration, and why (one line)."""

    request_id: str
    reason: str


class Reconfigured(msgspec.Struct, frozen=True, tag=True):
    """Outcome of a Reconfigure: error is None when applied. seconds: time it took. config: as now in force."""

    token: int
    error: str | None
    seconds: float
    config: dict[str, Any]


class Died(msgspec.Struct, frozen=True, tag=True):
    """Last words of the step loop. kind: "config" (the checkpoint cannot be served), "out_of_memory" or "crash";
    detail: one line without prompt text."""

    kind: str
    detail: str


ToEngine = Add | Abort | Reconfigure
FromEngine = Ready | Outputs | Rejected | Reconfigured | Died
