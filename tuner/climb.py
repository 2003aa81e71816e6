"""One trial: a configuration replayed at the load that the best one so far holds and, while it holds too, at more.

A configuration that cannot hold what another one does costs one replay, mostly a short one; what a better one can hold
is found by the replays that prove it. Where the study file fixes the time scale, that is the only load.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from tuner import ladder
from tuner.bench import Bench
from tuner.errors import LaunchError, ServingError
from tuner.outcome import Outcome, broken, failed, judge
from tuner.scoring.probes import ProbeRecord
from tuner.serving import adapters
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Purpose

TIME_SCALE = "time_scale"
"""Trial attribute: the load of its outcome, times the recorded rate."""
HIGHEST = ladder.scale(ladder.RUNGS)


def incumbent_scale(trials: Iterable[FrozenTrial], start: float) -> float:
    """The highest load at which a finished trial was feasible; `start` before there is one."""
    held = [
        trial.user_attrs[TIME_SCALE]
        for trial in trials
        if trial.state == TrialState.COMPLETE and all(value <= 0 for value in trial.constraints.values())
    ]
    return max([start, *held])


@dataclass(frozen=True, slots=True)
class Climb:
    """Where the outcomes of trials come from. reference: answers that quality is held against."""

    bench: Bench
    reference: tuple[ProbeRecord, ...]

    def attempt(self, number: int, config: ServingConfig, scale: float) -> Outcome:
        """Measure and judge one configuration. Whatever goes wrong is the outcome; only the user's Ctrl-C gets
        through."""
        start = time.monotonic()
        self.bench.renew_lease()  # outside: a lease that another runner has taken over is no failure of this trial
        try:
            adapters.engine_config(config)
            return self._baseline(config, scale) if number == 0 else self._trial(number, config, scale)
        except LaunchError as error:
            return broken(error.reason, str(error), time.monotonic() - start)
        except ServingError as error:
            return failed(error.reason, str(error), time.monotonic() - start)
        except Exception as error:  # noqa: BLE001 - a defect met in one trial must not lose the study
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            return broken("internal_error", where, time.monotonic() - start)

    @property
    def _climbs(self) -> bool:
        return self.bench.plan.spec.traffic.time_scale == "auto"

    def _baseline(self, config: ServingConfig, scale: float) -> Outcome:
        """At the load that it held when the load was looked for, or below, where it holds no longer."""
        outcome = self._replay(0, config, scale, "baseline")
        while self._climbs and outcome.misses_an_slo and (lower := ladder.below(scale)) is not None:
            scale = lower
            outcome = self._replay(0, config, scale, "baseline")
        return outcome

    def _trial(self, number: int, config: ServingConfig, scale: float) -> Outcome:
        outcome = self._replay(number, config, scale, "trial")
        while self._climbs and outcome.feasible and scale < HIGHEST:
            scale = ladder.above(scale)
            try:
                higher = self._replay(number, config, scale, "trial")
            except ServingError as error:
                # What it held below it still holds there.
                self.bench.report.note(f"trial {number} at x{scale:g}: {error.reason}: {error}")
                break
            if not higher.feasible:
                break
            outcome = higher
        return outcome

    def _replay(self, number: int, config: ServingConfig, scale: float, purpose: Purpose) -> Outcome:
        self.bench.report.at(scale)
        measured = self.bench.measure(number, config, self.bench.plan.load("tune", scale), purpose)
        return judge(self.bench.plan, measured, self.reference)
