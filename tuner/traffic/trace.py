"""Request and Trace: recorded traffic as the tuner sees it. Knows no SLO.

Format v1 is JSONL: a header line with provenance, then one request a line (docs/trace-format.md, trace.schema.json).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Endpoint = Literal["completions", "chat"]
Prompt = str | tuple[int, ...] | tuple[dict[str, str], ...]
"""Text, token ids, or chat messages ({"role", "content"})."""


@dataclass(frozen=True, slots=True)
class Request:
    """One recorded request. arrival: seconds from the start of the trace.

    output_tokens: length of the recorded answer in tokens; a replay forces it (ignore_eos, max_tokens = this) so
    that every configuration does the same work. None: the answer ends where the model ends it.
    """

    id: str
    arrival: float
    tenant: str
    slo_class: str
    prompt: Prompt
    max_tokens: int
    endpoint: Endpoint = "completions"
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests sorted by arrival, and where they came from (provenance: free-form, kept in the header line)."""

    requests: tuple[Request, ...]
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What happened to one request of a replay; raw, stored before anything is computed from it.

    Times are seconds since the replay's start on a monotonic clock. scheduled: when the trace said it arrives (the
    origin of every latency). token_times: when each output token arrived at the client; tokens that came in one
    chunk share a time. error: None, or a short typed reason: "refused", "http_5xx", "http_4xx", "connection",
    "timeout" (no answer by the drain deadline), "truncated" (stream ended without a finish), "not_sent" (the replay
    was stopped before its turn).
    """

    request_id: str
    tenant: str
    slo_class: str
    scheduled: float
    sent: float | None
    token_times: tuple[float, ...]
    prompt_tokens: int | None
    output_tokens: int
    expected_tokens: int | None
    finish_reason: str | None = None
    error: str | None = None
