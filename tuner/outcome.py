"""Outcome: what one trial is to the sampler, judged from its raw measurement or from its failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tuner.plan import Plan
from tuner.scored import score
from tuner.scoring.doubts import Doubt, disqualifying, doubts
from tuner.scoring.metrics import ClassMetrics, traffic_metrics
from tuner.scoring.probes import ProbeRecord
from tuner.scoring.slo import BADNESS_CAP
from tuner.serving.measurement import Measurement

WORST = BADNESS_CAP + 1.0
"""Every constraint of a trial that was not measured: as far from feasible as an SLO can be missed (see graded)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """state: measured; failed, by the configuration's own fault, which the sampler learns; broken, by no fault of the
    configuration, which it does not. objectives: in the order of results.OBJECTIVES. constraints: <= 0 is feasible.
    reason: typed reason of a failure or an early stop. seconds: time spent on a failure. time_scale: of the replay that
    it was measured by, None where it was not. rungs: (time scale, worst SLO constraint) of all its replays."""

    state: Literal["measured", "failed", "broken"]
    objectives: tuple[float, float, float] | None = None
    constraints: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    detail: str | None = None
    seconds: float = 0.0
    time_scale: float | None = None
    rungs: tuple[tuple[float, float], ...] = ()

    @property
    def feasible(self) -> bool:
        return self.state == "measured" and all(value <= 0 for value in self.constraints.values())

    @property
    def misses_an_slo(self) -> bool:
        """Whether less load could make it feasible, as far as is known."""
        return any(value > 0 for name, value in self.constraints.items() if name.startswith("slo:"))

    @property
    def worst_slo(self) -> float:
        """The largest SLO constraint of a measured trial."""
        return max(value for name, value in self.constraints.items() if name.startswith("slo:"))

    def ordered(self, plan: Plan) -> dict[str, float]:
        """The constraints to tell: the same names in the same order for every trial, WORST where nothing was measured.

        Samplers that match constraints by position would otherwise mix them up.
        """
        assert self.state != "measured" or set(self.constraints) == set(plan.constraint_names), self.constraints.keys()
        return {name: self.constraints.get(name, WORST) for name in plan.constraint_names}


class Reporter(Protocol):
    """Told what happens, as it happens."""

    def begin(self, what: str) -> None:
        """A measurement starts: "reference", "calibration x1.5", "trial 3 (2/24)", "holdout of trial 7"."""

    def at(self, time_scale: float) -> None:
        """What began replays the traffic so many times faster than recorded."""

    def resumed(self, earlier: Mapping[int, Outcome]) -> None:
        """The search begins; trial number -> what was measured before this run."""

    def trial_ended(self, number: int, outcome: Outcome) -> None:
        """A trial was told."""

    def note(self, text: str) -> None:
        """Something worth a line."""


def judge(plan: Plan, measurement: Measurement, reference: Sequence[ProbeRecord]) -> Outcome:
    """The outcome of a measured trial; "broken" where the figures are not the configuration's."""
    scored = score(measurement, reference, plan.spec)
    if (doubt := scored.disqualified) is not None:
        return broken(doubt.name, doubt.detail, sum(measurement.seconds.values()))
    told = dict(scored.constraints)
    for name, found in scored.traffic.classes.items():
        told[f"slo:{name}"] = graded(found)
    if scored.quality is None:
        # Not asked because the SLOs were hopeless: no reason for the sampler to shun this quality.
        told |= {name: 0.0 for name in told if name.startswith("quality:")}
    return Outcome("measured", scored.objectives, told, measurement.stopped, time_scale=measurement.time_scale)


def graded(found: ClassMetrics) -> float:
    """The violation for the sampler: where an SLO is missed, plus the missing share of good requests, 0 to 1.

    The violation itself is at its cap as soon as too many requests never end, however many were good; without the
    share, overloaded configurations would all look alike. Requests that a stopped replay never sent are left out.
    """
    if found.violation <= 0:
        return found.violation
    sent = found.offered - found.errors.get("not_sent", 0)
    return found.violation + max(found.target - found.good / max(sent, 1), 0.0)


def failed(reason: str, detail: str, seconds: float = 0.0) -> Outcome:
    """The configuration cannot run, or brings the engine down."""
    return Outcome("failed", reason=reason, detail=detail, seconds=seconds)


def broken(reason: str, detail: str, seconds: float = 0.0) -> Outcome:
    """Something else went wrong."""
    return Outcome("broken", reason=reason, detail=detail, seconds=seconds)


def disqualifying_doubt(plan: Plan, measurement: Measurement) -> Doubt | None:
    """Why the measurement's figures are not the configuration's, if they are not."""
    metrics = traffic_metrics(measurement.records, plan.slos, measurement.duration)
    return disqualifying(doubts(measurement.records, metrics, plan.slos, measurement.stopped))


def misses_an_slo(plan: Plan, measurement: Measurement) -> bool:
    """Whether some class falls short of its attainment."""
    return slo_violation(plan, measurement) > 0


def slo_violation(plan: Plan, measurement: Measurement) -> float:
    """The largest violation of a class, ln(latency / bound); negative: what the closest one has to spare."""
    metrics = traffic_metrics(measurement.records, plan.slos, measurement.duration)
    return max(found.violation for found in metrics.classes.values())
