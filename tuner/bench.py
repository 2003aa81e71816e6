"""Bench: where a study's configurations are measured; each measurement is stored, raw, before it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tuner.early_stop import slo_unreachable
from tuner.errors import LaunchError
from tuner.outcome import Reporter
from tuner.plan import Plan
from tuner.serving import adapters
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement, Purpose
from tuner.serving.testbed import Load, Testbed
from tuner.store import Store

LAUNCHES = 2
"""A process that does not come up is tried this often before it counts as broken."""
STOPPABLE = ("calibration", "trial")
"""What may stop early when its SLOs are out of reach. The baseline and the validations are numbers that people read."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The engine under test, what is to be measured on it, and where the results go."""

    plan: Plan
    store: Store
    testbed: Testbed
    report: Reporter
    renew_lease: Callable[[], None]

    @property
    def study_name(self) -> str:
        return self.plan.spec.name

    def measure(self, trial: int | None, config: ServingConfig, load: Load, purpose: Purpose) -> Measurement:
        """Measure and store. Probes are asked once per quality key and study, and copied from then on.

        Raises ServingError when the engine fails.
        """
        self.renew_lease()
        quality_key = adapters.quality_key(config)
        known = self.store.quality_records(self.study_name, quality_key)
        probes = self.plan.probes if known is None and purpose != "calibration" else None
        stop = slo_unreachable(load.requests, self.plan.slos, load.time_scale) if purpose in STOPPABLE else None
        for launch in range(LAUNCHES):
            try:
                measured = self.testbed.measure(config, load, purpose=purpose, probes=probes, stop=stop)
                break
            except LaunchError:
                if launch == LAUNCHES - 1:
                    raise
        if known is not None and purpose != "calibration":
            measured = replace(measured, probes=known)
        self.store.save_measurement(self.study_name, trial, measured, quality_key)
        return measured
