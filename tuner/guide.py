"""Guide: the simulator beside a study. It proposes trials, watches how well it foretold them, and says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.profile import Profile
from search_spaces.space import key
from tuner.answers import QualityKey
from tuner.bench import Bench
from tuner.errors import ConfigRejected, ServingError
from tuner.outcome import Outcome
from tuner.plan import Plan
from tuner.prediction import calibrated, capacity, misses
from tuner.proposals import Seen, chances
from tuner.screening import Candidate, Knobs, Trust, pick, screen, trust
from tuner.serving.testbed import Load
from tuner.simulation import Simulator, prompt_tokens

SECONDS = 20.0
"""Of this process's own time that predictions may take: about what a trial does."""


class Guide:
    """slower: how much slower the machine is than its profile, from the baseline's replays that ran to their end."""

    def __init__(self, bench: Bench, profile: Profile) -> None:
        self._bench, plan = bench, bench.plan
        unslowed = Simulator(profile, prompt_tokens(plan.windows["tune"].requests, plan.spec.model))
        replays = [stored.measurement for stored in bench.store.measurements(bench.study_name)]
        whole = [m for m in replays if m.purpose in ("calibration", "baseline") and m.stopped is None]
        self.slower = calibrated(unslowed, [(m.config, plan.load("tune", m.time_scale), m.records) for m in whole])
        self._simulator = unslowed.slower(self.slower)
        self._predicted: dict[str, Candidate] = {}
        self._proposed: set[str] = set()
        self._left = 0
        self._foretold: list[tuple[float]] = []
        self._measured: list[tuple[float]] = []
        self._verdict: Trust | None = None

    def screen(self, start: float) -> None:
        """Predict for many configurations; `budget.screened` are proposed. start: the load of the first trials."""
        plan, began = self._bench.plan, time.process_time()
        found = screen(
            plan.space,
            plan.baseline,
            lambda knobs: self._capacity(knobs, start),
            seed=plan.spec.seed + len(self._predicted),
            enough=lambda: time.process_time() - began > SECONDS,
        )
        self._predicted |= {key(one.knobs): one for one in found}
        self._left = plan.spec.budget.screened
        self._bench.report.note(
            f"simulated {len(found)} configurations, steps {self.slower:.2f} times as long as profiled: "
            f"{self._left} are measured next"
        )

    def propose(self, seen: Sequence[Seen], quality_key: QualityKey) -> Knobs | None:
        """The next trial, given those so far; None when it has no say."""
        if not self._left or not self._predicted:
            return None
        self._left -= 1
        candidates = list(self._predicted.values())
        held = [self._predicted[key(one.knobs)] for one in seen if one.feasible and key(one.knobs) in self._predicted]
        best = max((one.predicted for one in held), default=min(one.predicted for one in candidates))
        space, tried = self._bench.plan.space, self._proposed | {key(one.knobs) for one in seen}
        chance = chances(space, [one.knobs for one in candidates], seen, quality_key)
        chosen = pick(candidates, chance, space, tried, best)
        if chosen is None:
            return None
        self._proposed.add(key(chosen.knobs))
        return chosen.knobs

    def told(self, knobs: Mapping[str, Any], outcome: Outcome, start: float) -> None:
        """A trial has ended. After MIN_TRIALS more are proposed if those were foretold."""
        rungs = outcome.rungs
        if not rungs and outcome.state == "measured" and outcome.time_scale is not None:
            rungs = ((outcome.time_scale, outcome.worst_slo),)
        if rungs and (foretold := self._misses(knobs, rungs[0][0])) is not None:
            self._foretold.append((foretold,))
            self._measured.append((rungs[0][1],))
        if self._verdict is not None or (found := trust(self._foretold, self._measured)).deserved is None:
            return
        self._verdict = found
        if found.deserved:
            self.screen(start)
        else:
            self._left = 0
            self._bench.report.note(f"the simulator is not followed any further: {found}")

    def _capacity(self, knobs: Knobs, start: float) -> float | None:
        plan = self._bench.plan

        def load(scale: float) -> Load:
            return plan.load("tune", scale)

        try:
            return capacity(self._simulator, plan.config(knobs), load, plan.slos, start).scale
        except (ConfigRejected, ValueError):
            return None

    def _misses(self, knobs: Mapping[str, Any], scale: float) -> float | None:
        plan = self._bench.plan
        try:
            return misses(self._simulator.replay(plan.config(knobs), plan.load("tune", scale)), plan.slos)
        except (ConfigRejected, ValueError):
            return None


def guided(bench: Bench, profiler: Callable[[Plan], Profile] | None, start: float) -> Guide | None:
    """A guide that has proposals; None also where there is no profile to be had: a study does not stand on what is
    simulated."""
    if profiler is None:
        return None
    bench.report.begin("profile")
    try:
        guide = Guide(bench, profiler(bench.plan))
    except (ServingError, ValueError) as error:
        bench.report.note(f"nothing is simulated: {error}")
        return None
    guide.screen(start)
    return guide
