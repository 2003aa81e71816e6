"""A configuration and its measurement in the words of a study file: objectives, signed constraints, doubts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.scoring.cost import Cost
from tuner.scoring.doubts import Doubt, disqualifying, doubts
from tuner.scoring.metrics import TrafficMetrics, tail_latency, traffic_metrics
from tuner.scoring.probes import ProbeRecord
from tuner.scoring.quality import Floor, QualityScore, quality_score
from tuner.scoring.slo import SLO
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement
from tuner.spec import SLOSpec, StudySpec

UNFINISHED = 1e-3
"""Least violation of a slice of which not all probes were asked."""
UNPROVEN = 1.0
"""Violation of a quality floor that was not measured: an unproven floor does not hold."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One measurement, scored. objectives: in the order of OBJECTIVES. constraints: always the same keys, sorted.
    quality: None where no probes were answered."""

    objectives: tuple[float, float, float]
    constraints: Mapping[str, float]
    traffic: TrafficMetrics
    quality: QualityScore | None
    doubts: tuple[Doubt, ...]

    @property
    def disqualified(self) -> Doubt | None:
        """The doubt for which the figures are not the configuration's, if there is one."""
        return disqualifying(self.doubts)

    @property
    def worst_slo(self) -> float:
        """The largest SLO constraint."""
        return worst_slo(self.constraints)

    @property
    def feasible(self) -> bool:
        """Every constraint holds, none of them for want of probes, and the figures are the configuration's."""
        return (
            self.disqualified is None
            and self.quality is not None
            and all(value <= 0.0 for value in self.constraints.values())
        )


def score(measurement: Measurement, reference: Sequence[ProbeRecord], spec: StudySpec) -> Scored:
    """Score a measurement against the reference's probe records; the same function for live and old ones.

    Without probes (a replay stopped as hopeless) quality is 0 and its floors count as missed by UNPROVEN.
    """
    slos = {name: slo_of(bounds) for name, bounds in spec.slos.items()}
    floors = {name: floor_of(spec, name) for name in sorted({record.slice for record in reference})}
    traffic = traffic_metrics(measurement.records, slos, measurement.duration)
    quality = quality_score(reference, measurement.probes, floors) if measurement.probes else None
    constraints = {f"quality:{name}": UNPROVEN for name in floors}
    for found in quality.slices if quality else ():
        # A gate that stopped the questions leaves no slice proven, whatever the floors are now.
        least = found.violation if quality is None or quality.complete else max(found.violation, UNFINISHED)
        constraints[f"quality:{found.name}"] = least
    constraints |= {f"slo:{name}": found.violation for name, found in traffic.classes.items()}
    tail = tail_latency(
        [record for record in measurement.records if record.slo_class == spec.tail.slo_class],
        spec.tail.metric,
        spec.tail.percentile,
        worst=measurement.duration + spec.traffic.drain_timeout,
    )
    return Scored(
        objectives=(traffic.goodput.value, quality.value if quality else 0.0, tail),
        constraints=dict(sorted(constraints.items())),
        traffic=traffic,
        quality=quality,
        doubts=doubts(measurement.records, traffic, slos, measurement.stopped),
    )


def worst_slo(constraints: Mapping[str, float]) -> float:
    """The largest of the SLO constraints."""
    return max(value for name, value in constraints.items() if name.startswith("slo:"))


def config_of(spec: StudySpec, knobs: Mapping[str, Any]) -> ServingConfig:
    """The configuration of a trial with these knobs."""
    models = {"model": str(spec.model)} | ({} if spec.draft_model is None else {"draft_model": str(spec.draft_model)})
    return ServingConfig(spec.engine.name, {**spec.engine.settings, **models}, dict(knobs))


def slo_of(bounds: SLOSpec) -> SLO:
    """The study file's bounds in the words of scoring."""
    return SLO(**bounds.model_dump())


def cost_of(spec: StudySpec) -> Cost | None:
    """What the study's machine costs, if its file says so."""
    return None if spec.cost is None else Cost(**spec.cost.model_dump())


def floor_of(spec: StudySpec, slice_name: str) -> Floor:
    """The floor of one slice: its own, or the default."""
    floor = spec.quality.floors.get(slice_name, spec.quality.default_floor)
    return Floor(floor.max_nll_increase, floor.min_recall, floor.max_flips, floor.max_kl)


def representative(
    scored: Sequence[tuple[Measurement, Scored]],
) -> tuple[Measurement, Scored, float | None, tuple[tuple[float, float], ...]]:
    """The replay that a trial is scored by, its scores, its missed_scale and its rungs: see TrialResult."""
    sound = [pair for pair in scored if pair[1].disqualified is None]
    rungs = tuple((one.time_scale, found.worst_slo) for one, found in sound)
    if not sound:
        return *scored[-1], None, rungs
    held = [pair for pair in sound if pair[1].feasible]
    if held:
        best = max(held, key=lambda pair: pair[0].time_scale)
    else:
        best = min(reversed(sound), key=lambda pair: pair[0].time_scale)
    above = [m.time_scale for m, found in sound if not found.feasible and m.time_scale > best[0].time_scale]
    return *best, min(above) if held and above else None, rungs
