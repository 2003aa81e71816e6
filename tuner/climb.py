"""One trial: a configuration replayed at the load that the best one so far that answers as well holds, and, while it
holds too, at more.

A configuration that cannot hold what another one does costs one replay, mostly a short one; what a better one can hold
is found by the replays that prove it. Where the study file fixes the time scale, that is the only load.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from tuner import ladder
from tuner.answers import to_beat
from tuner.bench import Bench
from tuner.errors import LaunchError, ServingError
from tuner.outcome import Outcome, broken, failed, judge
from tuner.scored import representative, score
from tuner.scoring.probes import ProbeRecord
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement, Purpose

TIME_SCALE = "time_scale"
"""Trial attribute: the load of its outcome, times the recorded rate."""


def incumbent_scale(trials: Iterable[FrozenTrial], start: float, quality: float | None = None) -> float:
    """The highest load at which a finished trial that answers at least as well was feasible; `start` before there is
    one. quality: of the answers, None where it is not known."""
    held = [
        (trial.values[1], trial.user_attrs[TIME_SCALE])
        for trial in trials
        if trial.state == TrialState.COMPLETE and all(value <= 0 for value in trial.constraints.values())
    ]
    return max(start, to_beat(quality, held, start))


@dataclass(frozen=True, slots=True)
class Climb:
    """Where the outcomes of trials come from. reference: answers that quality is held against."""

    bench: Bench
    reference: tuple[ProbeRecord, ...]

    def attempt(self, number: int, config: ServingConfig, scale: float, earlier: Sequence[Measurement] = ()) -> Outcome:
        """Measure and judge one configuration. Whatever goes wrong is the outcome; only the user's Ctrl-C gets
        through. earlier: replays of the baseline that an earlier runner stored."""
        start = time.monotonic()
        self.bench.renew_lease()  # outside: a lease that another runner has taken over is no failure of this trial
        try:
            return self._baseline(config, scale, earlier) if number == 0 else self._trial(number, config, scale)
        except LaunchError as error:
            return broken(error.reason, str(error), time.monotonic() - start)
        except ServingError as error:
            return failed(error.reason, str(error), time.monotonic() - start)
        except Exception as error:  # noqa: BLE001 - a defect met in one trial must not lose the study
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            return broken("internal_error", where, time.monotonic() - start)

    def known(self, measured: Sequence[Measurement]) -> Outcome:
        """The outcome of a trial whose replays were stored by an earlier runner."""
        plan = self.bench.plan
        scored = [(one, score(one, self.reference, plan.spec)) for one in measured]
        outcome = judge(plan, representative(scored)[0], self.reference)
        replays = [judge(plan, one, self.reference) for one in measured]
        return self._with_rungs(outcome, replays)

    def _with_rungs(self, outcome: Outcome, replays: Sequence[Outcome]) -> Outcome:
        sound = [(one.time_scale, one.worst_slo) for one in replays if one.time_scale is not None]
        return replace(outcome, rungs=tuple(sound)) if self._climbs else outcome

    @property
    def _climbs(self) -> bool:
        return self.bench.plan.spec.traffic.time_scale == "auto"

    def _baseline(self, config: ServingConfig, scale: float, earlier: Sequence[Measurement]) -> Outcome:
        """At the load that it held when the load was looked for, or below, where it holds no longer."""
        judged = [judge(self.bench.plan, one, self.reference) for one in earlier]
        replays = [one for one in judged if one.state == "measured"] or [self._replay(0, config, scale, "baseline")]
        scale = replays[-1].time_scale or scale
        while self._climbs and replays[-1].misses_an_slo and (lower := ladder.below(scale)) is not None:
            scale = lower
            replays.append(self._replay(0, config, scale, "baseline"))
        return self._with_rungs(replays[-1], replays)

    def _trial(self, number: int, config: ServingConfig, scale: float) -> Outcome:
        outcome = self._replay(number, config, scale, "trial")
        replays = [outcome]
        while self._climbs and outcome.feasible and scale < ladder.SCALES[-1]:
            scale = ladder.above(scale)
            try:
                replays.append(self._replay(number, config, scale, "trial"))
            except ServingError as error:
                # What it held below it still holds there.
                self.bench.report.note(f"trial {number} at x{scale:g}: {error.reason}: {error}")
                break
            if not replays[-1].feasible:
                break
            outcome = replays[-1]
        return self._with_rungs(outcome, replays)

    def _replay(self, number: int, config: ServingConfig, scale: float, purpose: Purpose) -> Outcome:
        self.bench.report.at(scale)
        measured = self.bench.measure(number, config, self.bench.plan.load("tune", scale), purpose)
        return judge(self.bench.plan, measured, self.reference)
