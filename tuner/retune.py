"""When to tune again: how far traffic may move before a recommendation was made for something else.

Thresholds: lengths by the population stability index, the rate by the load that was held, shares in points. Sources:
docs/metrics.md, section "When to tune again".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuner.recommend import Recommendation
from tuner.results import StudyResults
from tuner.serving.measurement import ACCEPTED, DRAFTED, share
from tuner.traffic.profile import (
    TrafficProfile,
    drift_limit,
    length_drift,
    output_lengths,
    profile_from,
    profile_of,
    prompt_lengths,
)
from tuner.traffic.trace import Trace
from tuner.worth import proven

POINTS = 0.10
"""By which a share (accepted guesses, prompt tokens found in the prefix cache) may move."""
QUERIES, HITS = "prefix_cache_queries", "prefix_cache_hits"
"""Counters of the engine, in tokens."""


@dataclass(frozen=True, slots=True)
class RetuneWhen:
    """What a recommendation was made for. profile: of the tuning window, None in a study that kept none. held_rate:
    requests/s that it was shown to hold. acceptance: share of guessed tokens accepted, None without speculation. hits:
    share of the prompt tokens found in the prefix cache, None without one."""

    trial: int
    held_rate: float
    profile: TrafficProfile | None
    acceptance: float | None
    hits: float | None


@dataclass(frozen=True, slots=True)
class Drift:
    """One threshold and where other traffic stands. what: in words. limit: how far it may go."""

    what: str
    tuned: float | None
    now: float
    limit: float
    exceeded: bool


def retune_when(results: StudyResults, found: Recommendation) -> RetuneWhen | None:
    """None where there is nothing to deploy."""
    if (trial := found.trial) is None or not found.deployable:
        return None
    kept = results.provenance.get("traffic")
    return RetuneWhen(
        trial=trial.number,
        held_rate=proven(results, trial).offered_rate,
        profile=None if kept is None else profile_from(kept),
        acceptance=share(trial.engine_metrics, ACCEPTED, DRAFTED),
        hits=share(trial.engine_metrics, HITS, QUERIES),
    )


def conditions(when: RetuneWhen) -> tuple[str, ...]:
    """Each threshold as a sentence's end: "tune again when …"."""
    words = [f"the rate stays above {when.held_rate:.3g} requests/s, the most that it was shown to hold"]
    if (profile := when.profile) is not None:
        for name, counts in (("prompt", profile.prompt), ("output", profile.output)):
            if counts is not None:
                middle = counts.edges[len(counts.edges) // 2] if counts.edges else 0
                limit = drift_limit(counts.deciles, 1000)
                words.append(f"{name} lengths drift (now: half up to {middle} tokens): PSI above {limit:.2g}")
        if profile.shared is not None:
            words.append(
                f"prompts share another part of their tokens than {profile.shared:.0%}, by more than {_points()}"
            )
    if when.acceptance is not None and when.acceptance > POINTS:
        words.append(
            f"fewer than {when.acceptance - POINTS:.0%} of guessed tokens are accepted ({when.acceptance:.0%} now)"
        )
    return tuple(words)


def drifts(when: RetuneWhen, trace: Trace, acceptance: float | None = None) -> tuple[Drift, ...]:
    """Other traffic against every threshold that can be compared. acceptance: as it was measured on that traffic."""
    new = profile_of(trace)
    found = [Drift("arrival rate (requests/s)", None, new.rate, when.held_rate, new.rate > when.held_rate)]
    if (old := when.profile) is not None:
        found[0] = Drift(found[0].what, old.rate, new.rate, when.held_rate, new.rate > when.held_rate)
        found += _length_drifts("prompt", old.prompt.edges, length_drift(old.prompt, prompt_lengths(trace)))
        if old.output is not None and (lengths := output_lengths(trace)):
            found += _length_drifts("output", old.output.edges, length_drift(old.output, lengths))
        if old.shared is not None and new.shared is not None:
            moved = abs(new.shared - old.shared)
            found.append(Drift("shared prompt tokens", old.shared, new.shared, POINTS, moved > POINTS))
    if when.acceptance is not None and acceptance is not None:
        lost = when.acceptance - acceptance
        found.append(Drift("accepted guesses", when.acceptance, acceptance, POINTS, lost > POINTS))
    return tuple(found)


def _length_drifts(name: str, edges: Sequence[int], index: tuple[float, float]) -> list[Drift]:
    """None where all lengths of the tuning window were equal: there are no bins to compare."""
    value, limit = index
    return [Drift(f"{name} lengths (PSI)", 0.0, value, limit, value > limit)] if edges else []


def _points() -> str:
    return f"{POINTS * 100:.0f} points"
