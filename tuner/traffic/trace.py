"""Request and Trace: recorded traffic as the tuner sees it. Knows no SLO.

Format v1 is JSONL: a header line with provenance, then one request a line (docs/trace-format.md, trace.schema.json);
trace_file.py reads and writes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

Endpoint = Literal["completions", "chat"]
Prompt = str | tuple[int, ...] | tuple[dict[str, str], ...]
"""Text, token ids, or chat messages ({"role", "content"})."""


@dataclass(frozen=True, slots=True)
class Request:
    """One recorded request. arrival: seconds from the start of the trace.

    output_tokens: length of the recorded answer in tokens; a replay forces it (ignore_eos, max_tokens = this) so
    that every configuration does the same work. None: the answer ends where the model ends it.
    output_tokens_estimated: the server told no usage and the recorder counted content chunks instead.
    session: name of the conversation that this is a turn of; a session's turns are in order of arrival, and none starts
    before the one before it has ended. think_time: seconds from that end to this request; None: the turn starts at
    its arrival, or at that end if it is later. The first turn starts at its arrival and has no think_time. A later
    turn's arrival is the recorded one, or where the source tells none the turn before's arrival plus think_time.
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
    output_tokens_estimated: bool = False
    session: str | None = None
    think_time: float | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests sorted by arrival, and where they came from (provenance: free-form, kept in the header line).

    seconds: length of the recording or of the window it was cut to; None where only the last arrival is known.
    """

    requests: tuple[Request, ...]
    provenance: dict[str, Any]
    seconds: float | None = None

    @property
    def span(self) -> float:
        """Seconds over which requests were offered: `seconds` if known, otherwise up to the last arrival."""
        return self.seconds if self.seconds is not None else self.requests[-1].arrival

    @property
    def slo_classes(self) -> tuple[str, ...]:
        """Names of the SLO classes, sorted."""
        return tuple(sorted({request.slo_class for request in self.requests}))

    @property
    def tenants(self) -> tuple[str, ...]:
        """Names of the tenants, sorted."""
        return tuple(sorted({request.tenant for request in self.requests}))

    def window(self, start: float, end: float) -> Trace:
        """The requests that arrive in [start, end) seconds, rebased to 0. Raises ValueError when there are none.

        Of a session that the window cuts, the turns inside are kept; the first of them starts at its arrival.
        """
        if not 0 <= start < end:
            raise ValueError(f"trace window [{start:g}, {end:g}): expected 0 <= start < end (seconds)")
        inside = (replace(r, arrival=r.arrival - start) for r in self.requests if start <= r.arrival < end)
        requests = opened_sessions(inside)
        if not requests:
            raise ValueError(f"trace window [{start:g}, {end:g}): holds no request; the trace spans {self.span:g} s")
        return Trace(requests, {**self.provenance, "window": [start, end]}, seconds=end - start)


def opened_sessions(requests: Iterable[Request]) -> tuple[Request, ...]:
    """The same requests, sorted by arrival as they are, where the first of each session has no think_time: what to do
    after a selection that may have left out first turns."""
    seen: set[str] = set()
    opened = []
    for request in requests:
        first = request.session is not None and request.session not in seen
        if request.session is not None:
            seen.add(request.session)
        opened.append(replace(request, think_time=None) if first else request)
    return tuple(opened)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What happened to one request of a replay; raw, stored before anything is computed from it.

    Times are seconds since the replay's start on a monotonic clock. scheduled: when the trace said it arrives (the
    origin of every latency). sent: when the client began to send it; sent - scheduled is the client's own lag.
    token_times: when each output token arrived at the client; tokens that came in one chunk share a time.
    output_tokens: as many as chunks told ids of, otherwise from the server's usage where it told one; a server that
    merges tokens into one chunk without saying which leaves fewer token_times than that, never more. expected_tokens:
    the length the replay forced.
    error: None, or a short typed reason: "refused" (TCP connection refused), "http_5xx", "http_4xx", "connection"
    (reset or broken), "timeout" (no end by the drain deadline; tokens received so far are kept), "truncated" (stream
    ended without a finish), "protocol" (the stream carried an error, or was no completion stream), "stopped" (in
    flight when the replay was stopped), "not_sent" (see not_sent_reason).
    not_sent_reason: "stopped" when the replay was before its turn came; else which earlier turn of its session failed,
    and how.
    claimed_tokens: output tokens of the server's usage, which may be others than output_tokens, those delivered.
    answer_digest, prompt_digest: equal for equal texts within one replay, and nothing else; None without any text.
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
    not_sent_reason: str | None = None
    claimed_tokens: int | None = None
    answer_digest: int | None = None
    prompt_digest: int | None = None
