"""What is doubtful about a trace before anything is measured with it. Each doubt says what to do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from tuner.traffic.facts import Facts
from tuner.traffic.statistics import bin_counts

CONFIDENCE = 0.95
CONSTANT_CV = 0.05
MIN_GAPS = 10
"""Fewer gaps say nothing about their law."""
ZERO_GAPS = 0.05
TICKS = (60.0, 30.0, 10.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.1, 0.01)
"""Clocks that sources have, in seconds."""
TICK_SLACK = 0.0011
"""Seconds by which a source rounds: Mooncake's 3 s ticks lie up to 1 ms beside."""
DRIFT_BINS = 10
DRIFT_RHO, DRIFT_P = 0.65, 0.05
"""AIPerf calls a series non-stationary from there on."""
SILENCE = 0.2
CUT_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class TraceDoubt:
    """name: what is doubtful. detail: the evidence. advice: what to do about it."""

    name: str
    detail: str
    advice: str


def trace_doubts(requests: Sequence[Facts], span: float, provenance: Mapping[str, Any]) -> tuple[TraceDoubt, ...]:
    """Every doubt about a trace. requests: in order of arrival, at least one. span: seconds."""
    arrivals = np.array([one.arrival for one in requests])
    return (
        *_reading(provenance),
        *_too_few(requests),
        *_gaps(arrivals),
        *_drift(arrivals, span),
        *_silence(arrivals, span),
        *_prompts(requests),
        *_outputs(requests),
    )


def requests_to_prove(rank: float) -> int:
    """Requests of which none may miss its bound to prove, 95 % sure, that a share `rank` meets it: 0.99 -> 299."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(rank))


def _reading(provenance: Mapping[str, Any]) -> Iterator[TraceDoubt]:
    if "cut_off_line" in provenance:
        yield TraceDoubt(
            "cut_off",
            f"line {provenance['cut_off_line']} is the beginning of a request and was left out",
            "the recorder was killed; what it had written before is whole",
        )


def _too_few(requests: Sequence[Facts]) -> Iterator[TraceDoubt]:
    for name, count in sorted(Counter(one.slo_class for one in requests).items()):
        provable = [rank for rank in (90, 95, 99) if count >= requests_to_prove(rank / 100)]
        if 99 not in provable:
            most = f"at most a p{provable[-1]}" if provable else "no percentile from p90 up"
            yield TraceDoubt(
                "too_few_requests",
                f"class {name} has {count} requests: {most} can be proven (p90 29, p95 59, p99 299 without a miss)",
                "record longer, or ask for a lower attainment",
            )


def _gaps(arrivals: NDArray[np.float64]) -> Iterator[TraceDoubt]:
    gaps = np.diff(arrivals)
    if len(gaps) < MIN_GAPS or not gaps.any():
        return
    if (cv := float(gaps.std() / gaps.mean())) < CONSTANT_CV:
        yield TraceDoubt(
            "constant_gaps",
            f"the gaps between arrivals are all but equal (CV {cv:.2g}; independent users have 1)",
            "made by a load generator or rounded; a server looks better under it than under users",
        )
        return
    zero = float((gaps == 0).mean())
    tick = next((t for t in TICKS if _on_ticks(arrivals, t)), None)
    if tick is not None and (zero > ZERO_GAPS or tick >= float(np.median(gaps))):
        yield TraceDoubt(
            "quantised_clock",
            f"all arrivals are on ticks of {tick:g} s, {zero:.0%} of the gaps are 0",
            "each tick replays as a burst that never happened; import again with jitter",
        )
    elif zero > ZERO_GAPS:
        yield TraceDoubt(
            "simultaneous_arrivals",
            f"{zero:.0%} of the gaps are 0",
            "the clock was too coarse, or requests were sent in batches; jitter only in the first case",
        )


def _on_ticks(arrivals: NDArray[np.float64], tick: float) -> bool:
    offsets = arrivals - arrivals[0]
    slack = min(TICK_SLACK, tick / 50)
    return bool(np.abs(offsets - np.round(offsets / tick) * tick).max() <= slack)


def _drift(arrivals: NDArray[np.float64], span: float) -> Iterator[TraceDoubt]:
    if span <= 0 or len(arrivals) < 10 * DRIFT_BINS:
        return
    counts = bin_counts(arrivals, span, span / DRIFT_BINS)
    if np.ptp(counts) == 0:
        return
    rho, p = spearmanr(np.arange(len(counts)), counts)
    if abs(rho) > DRIFT_RHO and p < DRIFT_P:
        yield TraceDoubt(
            "rate_drifts",
            f"the rate {'rises' if rho > 0 else 'falls'} over the trace: {counts[0]} requests in its first tenth, "
            f"{counts[-1]} in its last",
            "tune on a window with the load you care about; a split by time compares two loads",
        )


def _silence(arrivals: NDArray[np.float64], span: float) -> Iterator[TraceDoubt]:
    edges = np.concatenate([[0.0], arrivals, [span]])
    gaps = np.diff(edges)
    longest = int(gaps.argmax())
    mean = span / len(arrivals)
    if len(arrivals) >= MIN_GAPS and gaps[longest] > max(SILENCE * span, 10 * mean):
        yield TraceDoubt(
            "silence",
            f"no request arrives from second {edges[longest]:.1f} to {edges[longest + 1]:.1f} of {span:.1f}",
            "if the recording paused, cut the trace there; the mean rate is too low",
        )


def _prompts(requests: Sequence[Facts]) -> Iterator[TraceDoubt]:
    if estimated := sum(one.prompt_estimated for one in requests):
        yield TraceDoubt(
            "prompt_lengths_estimated",
            f"{estimated} of {len(requests)} requests do not tell their prompt's tokens: 4 characters are taken as one",
            "record with stream_options.include_usage",
        )
    if all(one.hashes is None for one in requests):
        yield TraceDoubt(
            "sharing_unknown",
            "no request tells its prompt or prefix hashes: a replay shares no prefix at all",
            "what is measured of prefix caching on this trace says nothing about its users",
        )
    if len(requests) >= MIN_GAPS and len({one.prompt_tokens for one in requests}) == 1:
        yield TraceDoubt(
            "constant_prompts",
            f"every prompt has {requests[0].prompt_tokens} tokens",
            "users' lengths vary, and long prompts beside short ones are what hurts",
        )


def _outputs(requests: Sequence[Facts]) -> Iterator[TraceDoubt]:
    known = [one.output_tokens for one in requests if one.output_tokens is not None]
    if missing := len(requests) - len(known):
        yield TraceDoubt(
            "output_lengths_unknown",
            f"{missing} of {len(requests)} requests do not tell the length of their answer",
            "their answers end where the model ends them, so configurations do unequal work",
        )
    if estimated := sum(one.output_estimated for one in requests):
        yield TraceDoubt(
            "output_lengths_estimated",
            f"{estimated} of {len(requests)} answers were counted in chunks, which may hold several tokens",
            "record with stream_options.include_usage",
        )
    if len(known) < MIN_GAPS:
        return
    longest = known.count(max(known))
    if longest == len(known):
        yield TraceDoubt(
            "constant_outputs",
            f"every answer has {known[0]} tokens",
            "users' answers vary; batches will be too regular",
        )
    elif longest > CUT_SHARE * len(known):
        yield TraceDoubt(
            "outputs_cut",
            f"{longest / len(known):.0%} of the answers have the greatest length, {max(known)} tokens",
            "a limit cut them; without it they are longer",
        )
