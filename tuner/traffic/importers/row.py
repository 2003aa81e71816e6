"""One request as an importer read it, before times, lengths and prompts become ours."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.traffic.trace import Endpoint

Text = str | tuple[dict[str, str], ...]
"""A text prompt, or chat messages ({"role", "content"})."""


@dataclass(frozen=True, slots=True)
class Row:
    """number: line of the source, or item of its JSON array, counted from 1.

    arrival, end: integer nanoseconds on the source's own clock, whose origin is any; end: when the answer was complete.
    Integers, for seconds since 1970 as a float are exact to 0.2 us only. Lengths in tokens, as recorded; prompt: text,
    where the source has it. clock: the session whose start its arrival counts from, where sessions have clocks of
    their own and that is another one. hash_ids, session, think_time, and what is not named here: as in Request.
    """

    number: int
    arrival: int | None = None
    end: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    prompt: Text | None = None
    hash_ids: tuple[int, ...] = ()
    id: str | None = None
    tenant: str | None = None
    slo_class: str | None = None
    session: str | None = None
    clock: str | None = None
    think_time: float | None = None
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    reference: str | None = None

    @property
    def endpoint(self) -> Endpoint:
        return "chat" if isinstance(self.prompt, tuple) else "completions"


class BadLine(ValueError):
    """A line that cannot be read. The message says key and expectation, never a value: it might be a prompt."""


class LeftOut(ValueError):
    """A line that is well, but no request to replay (failed, answered from a cache, not a completion). The message is
    the reason, a few words, the same for all such lines."""
