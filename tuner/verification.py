"""Whether a recommendation still holds: what `tune verify` measured, scored on reading like everything else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tuner.scored import UNPROVEN, floor_of, slo_of
from tuner.scoring.doubts import Doubt, doubts
from tuner.scoring.metrics import Interval, traffic_metrics
from tuner.scoring.paired import good_differences, mean_difference
from tuner.scoring.probes import ProbeRecord
from tuner.scoring.quality import quality_score
from tuner.scoring.slo import SLO, attainment_violation, badness
from tuner.serving.measurement import ACCEPTED, DRAFTED, Measurement, share
from tuner.spec import StudySpec
from tuner.store import Store
from tuner.stored import StoredVerification

Comparison = Literal["better", "not told apart", "worse", "the baseline itself"]
PURPOSE: Literal["verify"] = "verify"


@dataclass(frozen=True, slots=True)
class Verified:
    """One configuration over all rounds. goodput: requests/s by round. attainment: share of good requests by class.
    violations: signed, of each class over the requests of all rounds, <= 0 where its SLO holds. acceptance: share of
    guessed tokens accepted, None without speculation."""

    trial: int
    goodput: tuple[float, ...]
    attainment: Mapping[str, float]
    violations: Mapping[str, float]
    acceptance: float | None = None

    @property
    def mean_goodput(self) -> float:
        """Over the rounds."""
        return sum(self.goodput) / len(self.goodput) if self.goodput else math.nan


@dataclass(frozen=True, slots=True)
class Verification:
    """about: of which trial, on what. baseline, recommended: None where no round of theirs was measured; they are one
    where the baseline itself is recommended. difference: goodput of the recommended configuration less the baseline's
    in requests/s, paired by request, with its 95 % interval. quality: signed violations of the slices' floors, asked
    again. doubts: of any of the replays, each once."""

    about: StoredVerification
    baseline: Verified | None
    recommended: Verified | None
    difference: Interval | None
    quality: Mapping[str, float]
    doubts: tuple[Doubt, ...]

    @property
    def missed(self) -> dict[str, float]:
        """What the recommended configuration misses, and by how much: "slo:<class>", "quality:<slice>"."""
        slos = {} if self.recommended is None else self.recommended.violations
        every = {f"slo:{name}": value for name, value in slos.items()}
        every |= {f"quality:{name}": value for name, value in self.quality.items()}
        return {name: value for name, value in every.items() if value > 0}

    @property
    def comparison(self) -> Comparison | None:
        """With the baseline, by the interval of the difference; None where they were not compared."""
        if self.about.trial == 0:
            return "the baseline itself"
        if self.difference is None:
            return None
        return "better" if self.difference.low > 0 else "worse" if self.difference.high < 0 else "not told apart"

    @property
    def holds(self) -> bool:
        """It was measured, meets every SLO and floor, and was not shown to be worse than the baseline."""
        measured = self.about.failure is None and self.recommended is not None
        return measured and not self.missed and self.comparison in ("better", "not told apart", "the baseline itself")


def load_verifications(store: Store, study: str, spec: StudySpec) -> tuple[Verification, ...]:
    """Every verification of a study, oldest first, scored with `spec`."""
    kept = {stored.id: stored for stored in store.measurements(study) if stored.measurement.purpose == PURPOSE}
    found = []
    for about in store.verifications(study):
        measured = [(kept[key].trial or 0, kept[key].measurement) for key in about.measurements]
        found.append(verification(about, measured, store.reference(about.reference_key) or (), spec))
    return tuple(found)


def verification(
    about: StoredVerification,
    measured: Sequence[tuple[int, Measurement]],
    reference: Sequence[ProbeRecord],
    spec: StudySpec,
) -> Verification:
    """measured: (trial, its replay) in the order of measuring."""
    slos = {name: slo_of(bounds) for name, bounds in spec.slos.items()}
    old = [measurement for trial, measurement in measured if trial == 0]
    new = [measurement for trial, measurement in measured if trial == about.trial]
    return Verification(
        about=about,
        baseline=_verified(0, old, slos),
        recommended=_verified(about.trial, new, slos),
        difference=_difference(old, new, slos) if about.trial else None,
        quality=_quality(new, reference, spec),
        doubts=_doubts([measurement for _, measurement in measured], slos),
    )


def _verified(trial: int, replays: Sequence[Measurement], slos: Mapping[str, SLO]) -> Verified | None:
    if not replays:
        return None
    bad: dict[str, list[float]] = {name: [] for name in slos}
    for replay in replays:
        for record in replay.records:
            bad[record.slo_class].append(badness(record, slos[record.slo_class]))
    asked = {name: values for name, values in bad.items() if values}
    return Verified(
        trial=trial,
        goodput=tuple(traffic_metrics(r.records, slos, r.duration).goodput.value for r in replays),
        attainment={name: sum(one <= 0 for one in values) / len(values) for name, values in asked.items()},
        violations={name: attainment_violation(values, slos[name].attainment) for name, values in asked.items()},
        acceptance=_acceptance(replays),
    )


def _acceptance(replays: Sequence[Measurement]) -> float | None:
    names = (DRAFTED, ACCEPTED)
    return share({n: sum(one.engine_metrics.get(n, 0.0) for one in replays) for n in names}, ACCEPTED, DRAFTED)


def _difference(old: Sequence[Measurement], new: Sequence[Measurement], slos: Mapping[str, SLO]) -> Interval | None:
    """Of the rounds that both have; a share of the requests becomes requests/s by the offered rate."""
    rounds = min(len(old), len(new))
    if not rounds:
        return None
    both = [*old[:rounds], *new[:rounds]]
    rate = sum(len(one.records) for one in both) / sum(one.duration for one in both)
    before, after = ([one.records for one in replays[:rounds]] for replays in (old, new))
    found = mean_difference(good_differences(before, after, slos))
    return Interval(found.value * rate, found.low * rate, found.high * rate)


def _quality(new: Sequence[Measurement], reference: Sequence[ProbeRecord], spec: StudySpec) -> dict[str, float]:
    """Of the round that asked the probes; every floor is unproven where none did."""
    floors = {name: floor_of(spec, name) for name in sorted({record.slice for record in reference})}
    probes = next((measurement.probes for measurement in new if measurement.probes), ())
    if not probes:
        return dict.fromkeys(floors, UNPROVEN)
    return {found.name: found.violation for found in quality_score(reference, probes, floors).slices}


def _doubts(replays: Sequence[Measurement], slos: Mapping[str, SLO]) -> tuple[Doubt, ...]:
    found: dict[str, Doubt] = {}
    for one in replays:
        metrics = traffic_metrics(one.records, slos, one.duration)
        for doubt in doubts(one.records, metrics, slos, one.stopped):
            found.setdefault(doubt.name, doubt)
    return tuple(found.values())
