"""What the store keeps raw of a study, for the figures that the scored results are too short for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tuner.results import TrialResult
from tuner.scoring.probes import ProbeRecord
from tuner.store import Store
from tuner.stored import Failure, StoredMeasurement, StoredVerification
from tuner.verification import PURPOSE
from tuner.worth import Proven

OF_TRIALS = ("baseline", "trial")
"""Purposes of the measurements that are a trial."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """measured: of the study, in the order in which they were made. reference: the reference's answers to the probes.

    verifications: what `tune verify` was asked, oldest first; verified: its replays; references: by reference key.
    """

    measured: tuple[StoredMeasurement, ...] = ()
    failures: tuple[Failure, ...] = ()
    reference: tuple[ProbeRecord, ...] = ()
    verifications: tuple[StoredVerification, ...] = ()
    verified: tuple[StoredMeasurement, ...] = ()
    references: Mapping[str, tuple[ProbeRecord, ...]] = field(default_factory=dict)

    def of_trial(self, trial: TrialResult) -> StoredMeasurement | None:
        """The measurement that the trial's figures come from; None for a trial without figures."""
        if trial.traffic is None:
            return None
        found = [one for one in self.measured if one.trial == trial.number and one.measurement.purpose in OF_TRIALS]
        same = [one for one in found if one.measurement.time_scale == trial.time_scale]
        return next(reversed(same or found), None)

    def behind(self, trial: TrialResult, worth: Proven) -> StoredMeasurement | None:
        """The measurement that what a trial is worth rests on."""
        found = (one for one in self.measured if (one.trial, one.created) == (trial.number, worth.created))
        return next(found, None) or self.of_trial(trial)

    def again(self, trial: int, purpose: str) -> StoredMeasurement | None:
        """The latest other measurement of the trial's configuration for this purpose."""
        found = [one for one in self.measured if one.trial == trial and one.measurement.purpose == purpose]
        return found[-1] if found else None


NOTHING = Evidence()


def load_evidence(store: Store, study: str) -> Evidence:
    """Raises ValueError for an unknown study."""
    key = str(store.study_info(study).provenance.get("reference_key", ""))
    every, asked = store.measurements(study), store.verifications(study)
    return Evidence(
        measured=tuple(one for one in every if one.measurement.purpose != PURPOSE),
        failures=store.failures(study),
        reference=store.reference(key) or (),
        verifications=asked,
        verified=tuple(one for one in every if one.measurement.purpose == PURPOSE),
        references={one.reference_key: store.reference(one.reference_key) or () for one in asked},
    )
