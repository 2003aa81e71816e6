"""Measurement: everything raw that one trial, or one validation of it, produced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tuner.scoring.probes import ProbeRecord
from tuner.scoring.speculation import DomainSpeculation
from tuner.serving.config import ServingConfig
from tuner.traffic.trace import RequestRecord

Purpose = Literal[
    "calibration", "baseline", "trial", "recorded_rate", "holdout", "reference", "repeat", "verify",
    "ablation", "scenario", "sentinel",
]  # fmt: skip
DRAFTED, ACCEPTED = "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens"
"""Two of engine_metrics: guessed tokens, and those that stood."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One replay and its quality probes under one configuration.

    time_scale: how many times faster than recorded the trace was replayed. window: name of the trace window
    ("tune", "holdout"). duration: seconds over which arrivals were offered (the window's span / time_scale).
    stopped: why the replay ended before its last arrival, or None. seconds: where the trial's time went
    (reconfigure, replay, quality). engine_metrics: counters the engine reported, as deltas over the replay.
    speculation: what a configuration that speculates accepted by domain, where that was asked.
    """

    config: ServingConfig
    purpose: Purpose
    window: str
    time_scale: float
    duration: float
    records: tuple[RequestRecord, ...]
    probes: tuple[ProbeRecord, ...]
    environment: dict[str, Any]
    seconds: dict[str, float]
    engine_metrics: dict[str, float] = field(default_factory=dict)
    stopped: str | None = None
    warm: bool = True
    speculation: tuple[DomainSpeculation, ...] = ()


def share(counters: Mapping[str, float], part: str, whole: str) -> float | None:
    """One counter over another; None where the second has not moved."""
    return counters.get(part, 0.0) / counters[whole] if counters.get(whole, 0.0) > 0 else None
