"""Bench: where a study's configurations are measured; each measurement is stored, raw, before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tuner.early_stop import hopeless
from tuner.environment import device_bytes
from tuner.errors import LaunchError, SpeculationLossy
from tuner.outcome import Reporter, disqualifying_doubt
from tuner.plan import Plan
from tuner.reference import cache_reference, cached_reference
from tuner.scored import floor_of
from tuner.scoring.probes import FINAL, FULL, Probe, ProbeRecord, against
from tuner.scoring.quality import quality_score
from tuner.scoring.speculation import DomainSpeculation
from tuner.serving import adapters
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement, Purpose
from tuner.serving.testbed import Load, Testbed
from tuner.store import Store

LAUNCHES = 2
"""A process that does not come up is tried this often before it counts as broken."""
STOPPABLE = ("calibration", "trial")
"""What may stop early when its SLOs are out of reach. The baseline and the validations are numbers that people read."""

FRESH = ("calibration", "verify", "ablation", "scenario", "sentinel")
"""What takes no answer from the store and leaves none for others: a calibration asks nothing, and a verification asks
again, perhaps other requests."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The engine under test, what is to be measured on it, and where the results go. machine: what it runs on, see
    tuner.environment."""

    plan: Plan
    store: Store
    testbed: Testbed
    report: Reporter
    renew_lease: Callable[[], None]
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def study_name(self) -> str:
        return self.plan.spec.name

    def check_fits(self, config: ServingConfig) -> None:
        """Raises DoesNotFit for what takes more memory than the machine has, ConfigRejected for what nothing runs."""
        adapters.check_fits(config, *device_bytes(self.machine))

    def measure(
        self, trial: int | None, config: ServingConfig, load: Load, purpose: Purpose, final: bool | None = None
    ) -> Measurement:
        """Measure and store; once more where the figures are not the configuration's (see disqualifying_doubt), which
        may be so for the second time too. final: ask all probes and check the speculation, as a repeat does by default;
        a verification asks all probes afresh, or none. Raises ServingError when the engine fails, and before it is
        asked where it cannot run the configuration.
        """
        self.check_fits(config)
        final = purpose == "repeat" if final is None else final
        checked = self._check_speculation(config) if final else ()
        measured = self._measure(trial, config, load, purpose, checked, final)
        if (doubt := disqualifying_doubt(self.plan, measured)) is not None:
            self.report.note(f"{purpose} is measured again: {doubt.name}: {doubt.detail}; {doubt.advice}")
            measured = self._measure(trial, config, load, purpose, checked, final)
        return measured

    def _measure(
        self,
        trial: int | None,
        config: ServingConfig,
        load: Load,
        purpose: Purpose,
        checked: tuple[DomainSpeculation, ...],
        final: bool,
    ) -> Measurement:
        """Probes are asked once per quality key and study, and repeated from then on; see also FRESH."""
        self.renew_lease()
        quality_key = None if purpose in FRESH else adapters.quality_key(config)
        known = () if quality_key is None else self.store.quality_records(self.study_name, quality_key) or ()
        probes = () if quality_key is None and not final else self._to_ask(known, final)
        stop = hopeless(load.requests, self.plan.slos, load.time_scale) if purpose in STOPPABLE else None
        for launch in range(LAUNCHES):
            try:
                measured = self.testbed.measure(
                    config, load, purpose=purpose, probes=probes, stop=stop, hopeless=self._hopeless
                )
                break
            except LaunchError:
                if launch == LAUNCHES - 1:
                    raise
        measured = replace(measured, probes=(*known, *measured.probes), speculation=checked)
        self.store.save_measurement(self.study_name, trial, measured, quality_key)
        return measured

    def _to_ask(self, known: Sequence[ProbeRecord], final: bool) -> tuple[Probe, ...]:
        """Probes not answered yet: finalists are asked those of the last gate too. What a gate has stopped stays so."""
        if known and max(record.gate for record in known) < FULL:
            return ()
        answered = {record.probe_id for record in known}
        last = FINAL if final else FULL
        open_ = [probe for probe in self.plan.probes if probe.gate <= last and probe.id not in answered]
        return against(open_, self.reference()) if open_ else ()

    def _check_speculation(self, config: ServingConfig) -> tuple[DomainSpeculation, ...]:
        """A finalist that speculates must answer as it does without. Raises SpeculationLossy."""
        if not adapters.engine_config(config).num_speculative_tokens:
            return ()
        found = self.testbed.speculation(config, self.plan.probes)
        if lossy := [domain.slice for domain in found if not domain.lossless]:
            raise SpeculationLossy(f"greedy answers differ with speculation in {', '.join(lossy)}")
        return found

    def reference(self) -> tuple[ProbeRecord, ...]:
        """Answers of the full-precision reference, from the store if it has answered these probes before."""
        plan, cache = self.plan, self.plan.spec.quality.reference_cache
        if (known := self.store.reference(plan.reference_key)) is not None:
            return known
        records = None if cache is None else cached_reference(cache, plan.reference_key)
        if records is None:
            self.report.begin("reference")
            records = self.testbed.answer(plan.reference, plan.probes)
            if cache is not None:
                cache_reference(cache, plan.reference_key, records)
        self.store.save_reference(plan.reference_key, records)
        return records

    def _hopeless(self, records: Sequence[ProbeRecord]) -> bool:
        floors = {name: floor_of(self.plan.spec, name) for name in {record.slice for record in records}}
        return quality_score(self.reference(), records, floors).hopeless
