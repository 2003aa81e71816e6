"""Guard rails: changes that would protect a configuration once it is deployed, and were not measured with it.

No export switches one on, for it would then serve other than what was measured: the deploy files name them in comments,
in the words of the engine by its own mapping table, with values that follow from the measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.config import EngineConfig


@dataclass(frozen=True, slots=True)
class Held:
    """What was measured. rate: requests/s that were held. patience: the SLO class that may wait longest for its first
    token, and how many seconds; None where no class has such a bound. least_acceptance: share of guessed tokens below
    which the study would be repeated, None without speculation."""

    rate: float
    patience: tuple[str, float] | None = None
    least_acceptance: float | None = None


@dataclass(frozen=True, slots=True)
class GuardRail:
    """changes: fields of EngineConfig and their values. why: what it does and where the values come from."""

    changes: Mapping[str, Any]
    why: str


def guard_rails(config: EngineConfig, held: Held) -> tuple[GuardRail, ...]:
    """Those that the configuration has not, and that can be told from what was held."""
    return tuple(rail for rail in (_queue_cap(config, held), _acceptance_floor(config, held)) if rail is not None)


def _queue_cap(config: EngineConfig, held: Held) -> GuardRail | None:
    """Little's law: at `rate` a queue of rate x bound takes as long as the bound."""
    if config.max_queued_requests is not None or held.patience is None:
        return None
    name, bound = held.patience
    cap = max(1, int(held.rate * bound))
    why = (
        f"Queue cap. {held.rate:.3g} requests/s were held, so the last of {cap} that wait gets its turn after "
        f"{bound:g} s, all that class {name} allows before its first token; what comes beyond is refused at once "
        "instead of answered late."
    )
    return GuardRail({"max_queued_requests": cap}, why)


def _acceptance_floor(config: EngineConfig, held: Held) -> GuardRail | None:
    adapts = config.speculation_adaptive and config.speculation_min_acceptance > 0
    if not config.num_speculative_tokens or adapts or held.least_acceptance is None:
        return None
    least = round(held.least_acceptance, 2)
    why = (
        f"Acceptance fallback. Where fewer than {least:.0%} of guessed tokens stand, guessing may cost more than it "
        "brings, and the study is out of date; below that share nothing need be guessed."
    )
    return GuardRail({"speculation_adaptive": True, "speculation_min_acceptance": least}, why)
