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
        through. earlier: its replays that an earlier runner stored, after which it goes on."""
        start = time.monotonic()
        self.bench.renew_lease()  # outside: a lease that another runner has taken over is no failure of this trial
        try:
            if number == 0:
                return self._baseline(config, scale, earlier)
            return self._trial(number, config, scale, earlier)
        except LaunchError as error:
            return broken(error.reason, str(error), time.monotonic() - start)
        except ServingError as error:
            return failed(error.reason, str(error), time.monotonic() - start)
        except Exception as error:  # noqa: BLE001 - a defect met in one trial must not lose the study
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            return broken("internal_error", where, time.monotonic() - start)

    def _with_rungs(self, outcome: Outcome, replays: Sequence[Outcome]) -> Outcome:
        sound = [(one.time_scale, one.worst_slo) for one in replays if one.time_scale is not None]
        return replace(outcome, rungs=tuple(sound)) if self._climbs else outcome

    @property
    def _climbs(self) -> bool:
        return self.bench.plan.spec.traffic.time_scale == "auto"

    def _baseline(self, config: ServingConfig, scale: float, earlier: Sequence[Measurement]) -> Outcome:
        """At the load that it held when the load was looked for, or below, where it holds no longer."""
        replays = self._sound(earlier) or [self._replay(0, config, scale, "baseline")]
        scale = replays[-1].time_scale or scale
        while self._climbs and replays[-1].misses_an_slo and (lower := ladder.below(scale)) is not None:
            scale = lower
            replays.append(self._replay(0, config, scale, "baseline"))
        return self._with_rungs(replays[-1], replays)

    def _trial(self, number: int, config: ServingConfig, scale: float, earlier: Sequence[Measurement]) -> Outcome:
        replays = self._sound(earlier) or [self._replay(number, config, scale, "trial")]
        outcome = next((one for one in reversed(replays) if one.feasible), replays[0])
        scale = outcome.time_scale or scale
        while self._climbs and replays[-1].feasible and scale < ladder.SCALES[-1]:
            scale = ladder.above(scale)
            try:
                replays.append(self._replay(number, config, scale, "trial"))
            except ServingError as error:
                # What it held below it still holds there.
                self.bench.report.note(f"trial {number} at x{scale:g}: {error.reason}: {error}")
                break
            if replays[-1].feasible:
                outcome = replays[-1]
        return self._with_rungs(outcome, replays)

    def _sound(self, earlier: Sequence[Measurement]) -> list[Outcome]:
        """The outcomes of those whose figures are the configuration's."""
        judged = [judge(self.bench.plan, one, self.reference) for one in earlier]
        return [one for one in judged if one.state == "measured"]

    def _replay(self, number: int, config: ServingConfig, scale: float, purpose: Purpose) -> Outcome:
        self.bench.report.at(scale)
        measured = self.bench.measure(number, config, self.bench.plan.load("tune", scale), purpose)
        return judge(self.bench.plan, measured, self.reference)
