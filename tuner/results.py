"""What a study says, derived from the store on reading: nothing here is stored.

A new SLO or floor therefore re-scores old runs without an engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tuner.scoring.metrics import TrafficMetrics
from tuner.scoring.quality import QualityScore
from tuner.spec import StudySpec

TrialState = Literal["feasible", "infeasible", "failed", "running"]
OBJECTIVES = ("goodput", "quality", "tail_latency")
DIRECTIONS = ("maximize", "maximize", "minimize")


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One trial, scored. objectives: in the order of OBJECTIVES, None unless measured.

    constraints: signed, <= 0 is feasible, keys "slo:<class>" and "quality:<slice>". reason: typed reason of a failure
    or of an early stop. seconds: where the trial's time went.
    """

    number: int
    state: TrialState
    knobs: Mapping[str, Any]
    objectives: tuple[float, float, float] | None
    constraints: Mapping[str, float]
    traffic: TrafficMetrics | None
    quality: QualityScore | None
    reason: str | None = None
    detail: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    on_front: bool = False


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """A measurement outside the search: calibration, recorded_rate, holdout or repeat, of one trial's configuration.

    trial: number of the trial whose configuration was measured.
    """

    trial: int
    purpose: str
    window: str
    time_scale: float
    traffic: TrafficMetrics
    constraints: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class StudyResults:
    """Everything a reader needs. trials[0] is the baseline. time_scale: how much faster than recorded the trials ran."""

    spec: StudySpec
    trials: tuple[TrialResult, ...]
    validations: tuple[ValidationResult, ...]
    time_scale: float
    environment: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def baseline(self) -> TrialResult:
        return self.trials[0]

    @property
    def front(self) -> tuple[TrialResult, ...]:
        return tuple(t for t in self.trials if t.on_front)
