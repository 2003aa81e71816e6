"""Guide: the simulator beside a study. It proposes trials, watches how well it foretold them, and says so."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from engine.profile import Profile
from search_spaces.space import key
from tuner.bench import Bench
from tuner.errors import ConfigRejected
from tuner.outcome import Outcome
from tuner.prediction import calibrated, capacity, misses
from tuner.scored import score
from tuner.screening import MIN_TRIALS, Knobs, Trust, screen, trust
from tuner.serving import adapters
from tuner.serving.testbed import Load
from tuner.simulation import Simulator, prompt_tokens

SECONDS = 20.0
"""Of this process's own time that a lot of proposals may take: about what a trial does."""


class Guide:
    """slower: how much slower the machine is than its profile, from the baseline's replays that ran to their end."""

    def __init__(self, bench: Bench, profile: Profile) -> None:
        self._bench, plan = bench, bench.plan
        unslowed = Simulator(profile, prompt_tokens(plan.windows["tune"].requests, plan.spec.model))
        replays = [stored.measurement for stored in bench.store.measurements(bench.study_name)]
        whole = [m for m in replays if m.purpose in ("calibration", "baseline") and m.stopped is None]
        self.slower = calibrated(unslowed, [(m.config, plan.load("tune", m.time_scale), m.records) for m in whole])
        self._simulator = unslowed.slower(self.slower)
        self._foretold: list[tuple[float]] = []
        self._measured: list[tuple[float]] = []
        self._tried: set[str] = set()
        self._verdict: Trust | None = None

    def first(self, start: float) -> list[Knobs]:
        """What to measure after the baseline: no more than it takes to judge the simulator, lest it be followed beyond.
        start: the load at which climbs begin."""
        return self._lot(start, 0, (), MIN_TRIALS)

    def told(self, knobs: Mapping[str, Any], outcome: Outcome, start: float) -> list[Knobs]:
        """A trial has ended; what to measure next: a second lot after MIN_TRIALS, if those were foretold."""
        self._tried.add(key(knobs))
        rungs = outcome.rungs
        if not rungs and outcome.state == "measured" and outcome.time_scale is not None:
            rungs = ((outcome.time_scale, outcome.worst_slo),)
        if rungs and (foretold := self._misses(knobs, rungs[0][0])) is not None:
            self._foretold.append((foretold,))
            self._measured.append((rungs[0][1],))
        if self._verdict is not None or (found := trust(self._foretold, self._measured)).deserved is None:
            return []
        self._verdict = found
        if not found.deserved:
            self._bench.report.note(f"the simulator is not followed any further: {found}")
            return []
        return self._lot(start, 1, self._failing())

    def _lot(self, start: float, number: int, excluded: Collection[str], most: int | None = None) -> list[Knobs]:
        plan, began = self._bench.plan, time.process_time()
        wanted = plan.spec.budget.screened
        found = screen(
            plan.space,
            plan.baseline,
            lambda knobs: None if key(knobs) in self._tried else self._capacity(knobs, start),
            lambda knobs: adapters.quality_key(plan.config(knobs)),
            seed=plan.spec.seed + number,
            proposals=wanted if most is None else min(wanted, most),
            excluded=excluded,
            enough=lambda: time.process_time() - began > SECONDS,
        )
        self._bench.report.note(
            f"simulated {found.predicted} configurations, steps {self.slower:.2f} times as long as profiled: "
            f"{len(found.proposals)} are measured next"
        )
        proposed = [candidate.knobs for candidate in found.proposals]
        self._tried |= {key(knobs) for knobs in proposed}
        return proposed

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

    def _failing(self) -> set[str]:
        """Quality keys of answers that do not hold their floors."""
        plan, store = self._bench.plan, self._bench.store
        reference = self._bench.reference()
        found = set()
        for stored in store.measurements(self._bench.study_name):
            if stored.measurement.probes:
                constraints = score(stored.measurement, reference, plan.spec).constraints
                if any(value > 0 for name, value in constraints.items() if name.startswith("quality:")):
                    found.add(adapters.quality_key(stored.measurement.config))
        return found
