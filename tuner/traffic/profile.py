"""What of traffic a configuration is tuned to: lengths, rate, shared prefixes; and how far other traffic is from it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2

from tuner.traffic.blocks import BLOCK_TOKENS, CHARS_PER_TOKEN, chained_hashes, text_blocks, token_blocks
from tuner.traffic.statistics import prefix_sharing
from tuner.traffic.synthesis import MADE_OF_LENGTHS
from tuner.traffic.trace import Request, Trace

SERIES = tuple(step * 10**power for power in range(6) for step in (1, 2, 5))[:-1]
"""1, 2, 5 … 200,000 tokens: bucket bounds of vLLM's length histograms, and of our engine's."""
DRIFTED = 0.2
"""A population stability index above it means another population (Siddiqi, Credit Risk Scorecards, 2006)."""
CHANCE = 0.95
BLOCK_CHARS = round(BLOCK_TOKENS * CHARS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class LengthCounts:
    """Requests by length in tokens. Bin i holds lengths in (edges[i-1], edges[i]], the last one those beyond all edges.

    deciles: bins of about a tenth each. series: the bins of SERIES, as engines count them.
    """

    edges: tuple[int, ...]
    deciles: tuple[int, ...]
    series: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TrafficProfile:
    """requests: in the window. rate: requests/s as recorded. prompt, output: lengths; output is None where the trace
    tells none. shared: share of the prompt tokens that an endless prefix cache would find; None where unknown."""

    requests: int
    rate: float
    prompt: LengthCounts
    output: LengthCounts | None
    shared: float | None


def profile_of(trace: Trace) -> TrafficProfile:
    """Of a window of one request or more. Prompt lengths that it does not tell are estimated from the characters."""
    output = [r.output_tokens for r in trace.requests if r.output_tokens is not None]
    made = trace.provenance.get("prompts") == MADE_OF_LENGTHS
    return TrafficProfile(
        requests=len(trace.requests),
        rate=len(trace.requests) / trace.span if trace.span > 0 else 0.0,
        prompt=_counts([_prompt_tokens(request) for request in trace.requests]),
        output=_counts(output) if output else None,
        shared=None if made else _shared(trace.requests),
    )


def profile_from(values: Mapping[str, Any]) -> TrafficProfile:
    """What `dataclasses.asdict` made of a profile, read from JSON."""
    lengths = {name: values[name] and LengthCounts(**{k: tuple(v) for k, v in values[name].items()}) for name in
               ("prompt", "output")}  # fmt: skip
    return TrafficProfile(**{**values, **lengths})


def stability_index(before: Sequence[int], after: Sequence[int]) -> float:
    """Population stability index of two histograms over the same bins: sum of (q - p) ln(q / p), >= 0.

    Half a count is added to each bin, so that an empty one does not make it infinite.
    """
    p, q = (_smoothed(counts) for counts in (before, after))
    return float(((q - p) * np.log(q / p)).sum())


def drift_limit(before: Sequence[int], after: int) -> float:
    """From which index on traffic of `after` requests has drifted: DRIFTED, or what chance alone reaches in 5 % of
    cases where either sample is small: (1/n + 1/m) times the 95th percentile of chi-square (Yurdakul, 2018)."""
    n, bins = max(sum(before), 1), len(before)
    return max(DRIFTED, float(chi2.ppf(CHANCE, max(bins - 1, 1))) * (1 / n + 1 / max(after, 1)))


def length_drift(before: LengthCounts, requests: Sequence[int]) -> tuple[float, float]:
    """Index over the deciles of `before`, and its limit. requests: lengths of the other traffic, in tokens."""
    after = _binned(requests, before.edges)
    return stability_index(before.deciles, after), drift_limit(before.deciles, len(requests))


def prompt_lengths(trace: Trace) -> list[int]:
    """Tokens of each prompt."""
    return [_prompt_tokens(request) for request in trace.requests]


def output_lengths(trace: Trace) -> list[int]:
    """Tokens of each answer whose length the trace tells."""
    return [request.output_tokens for request in trace.requests if request.output_tokens is not None]


def _smoothed(counts: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    padded = np.asarray(counts, dtype=np.float64) + 0.5
    return padded / padded.sum()


def _counts(lengths: Sequence[int]) -> LengthCounts:
    found = np.percentile(lengths, range(10, 100, 10), method="inverted_cdf")
    edges = tuple(int(edge) for edge in np.unique(found) if edge < max(lengths))
    return LengthCounts(edges, _binned(lengths, edges), _binned(lengths, SERIES))


def _binned(lengths: Sequence[int], edges: Sequence[int]) -> tuple[int, ...]:
    places = np.searchsorted(edges, lengths, side="left")
    return tuple(np.bincount(places, minlength=len(edges) + 1).tolist())


def _prompt_tokens(request: Request) -> int:
    if request.prompt_tokens is not None:
        return request.prompt_tokens
    text = _text(request)
    return len(request.prompt) if text is None else max(1, round(len(text) / CHARS_PER_TOKEN))


def _text(request: Request) -> str | None:
    """The prompt's text, its messages in an order that a longer conversation continues; None of token ids."""
    if isinstance(request.prompt, str):
        return request.prompt
    messages = [one for one in request.prompt if isinstance(one, dict)]
    return "".join(f"\x02{one['role']}\x03{one['content']}" for one in messages) if messages else None


def _shared(requests: Sequence[Request]) -> float | None:
    key = secrets.token_bytes(16)
    found = prefix_sharing([_blocks(request, key) for request in requests])
    return None if found is None else found.token_share


def _blocks(request: Request, key: bytes) -> tuple[Sequence[int], int, float]:
    """Hashes of the prompt's full blocks, its tokens, and the tokens of a block."""
    tokens, text = _prompt_tokens(request), _text(request)
    if text is not None:
        blocks = text_blocks(text, BLOCK_CHARS)[: len(text) // BLOCK_CHARS]
        return chained_hashes(b"text", blocks, key), tokens, tokens * BLOCK_CHARS / max(len(text), 1)
    ids = [one for one in request.prompt if isinstance(one, int)]
    blocks = token_blocks(ids, BLOCK_TOKENS)[: len(ids) // BLOCK_TOKENS]
    return chained_hashes(b"tokens", blocks, key), tokens, float(BLOCK_TOKENS)
