"""After the search: the finals, and the chosen configuration and the baseline on held-out traffic.

Winners of a noisy search disappoint. Candidates and the baseline race on the tuning window (tuner.finals); the chosen
one and the baseline are then replayed on the held-out window, from the load that the race lets them claim down to one
that they hold, and at the recorded rate. What comes next follows from what is stored: an interrupted race goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from tuner import ladder
from tuner.bench import Bench
from tuner.errors import ServingError
from tuner.finals import FIRST_REPLAYS, Candidate, choose, decided, estimates, next_replay, undecided
from tuner.outcome import disqualifying_doubt
from tuner.recommend import TESTING, held, recommend
from tuner.results import StudyResults, load_results
from tuner.scored import Scored
from tuner.serving.measurement import Purpose
from tuner.stored import ValidationFailure
from tuner.worth import LADDER, climbs, field, proven, replays_of, shown

DESCENT = 3
"""Rungs that a finalist may fall on one window; one that holds even less was no finalist."""
REPLAYS_EACH = 5
"""Of each candidate of the race on the average, at most: three at least, and two where the doubt is."""
SUBSTITUTES = 2
"""Candidates besides the finalists that may take the place of one that fails."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What to measure next: the configuration of a trial, for a purpose, so many times faster than recorded."""

    trial: int
    purpose: Purpose
    time_scale: float


def validate(bench: Bench) -> None:
    """Measure what is to be measured after the search. What failed in an earlier run is tried once more."""
    scores: dict[int, Scored] = {}
    read = partial(load_results, bench.store, bench.study_name, scores=scores)
    results = read()
    for failure in results.validation_failures:
        _measure(bench, results, Turn(failure.trial, failure.purpose, failure.time_scale))
    results, raced = read(), False
    while (turn := next_turn(results)) is not None:
        if raced and turn.purpose != "repeat":
            bench.report.note(_race_in_words(results))
        raced = turn.purpose == "repeat" and climbs(results)
        _measure(bench, results, turn)
        results = read()


def next_turn(results: StudyResults) -> Turn | None:
    """The next measurement of the finals; None when enough is known."""
    raced = climbs(results) and any(one.number for one in entrants(results))
    turn = next(_race(results) if raced else _one_by_one(results), None)
    if turn is None:
        chosen = recommend(results).trial
        # A miss that is not decided yet makes another one the chosen.
        begun = (one.trial for one in results.validations if one.purpose == "recorded_rate")
        numbers = dict.fromkeys((*begun, 0, 0 if chosen is None else chosen.number))
        asked = (number for number in numbers if _claims_recorded_rate(results, number))
        turn = next(_turns(results, asked, ("recorded_rate",)), None)
    return turn


def _claims_recorded_rate(results: StudyResults, number: int) -> bool:
    """What holds less is known to miss there; a study at a load of its own below it does not ask."""
    trial = results.trials[number]
    if not climbs(results):
        return results.time_scale >= 1.0
    return trial.traffic is None or proven(results, trial).time_scale >= 1.0


def entrants(results: StudyResults) -> list[Candidate]:
    """The baseline and as many finalists as the study file has, by the capacity that the search saw in them; in the
    place of one that is out the next, and after them those that are out."""
    candidates = {trial.number for trial in results.candidates if trial.number}
    promising = sorted(field(results)[0], key=lambda one: -one.expected)
    promising = [one for one in promising if one.number in candidates]
    finalists = results.spec.budget.finalists
    reserve = promising[: finalists + SUBSTITUTES] if finalists else []
    baseline = [one for one in field(results)[0] if one.number == 0]
    out = {one.number for one in (*baseline, *reserve) if _out(results, one.number)}
    standing = [one for one in reserve if one.number not in out][:finalists]
    gone = [replace(one, out=True) for one in (*baseline, *reserve) if one.number in out and one.replays]
    return [*(one for one in baseline if one.number not in out), *standing, *gone]


def _out(results: StudyResults, number: int) -> bool:
    """Whether a configuration failed when it was measured again, or misses a floor, or holds no load of a window."""
    if any(one.trial == number and one.purpose in TESTING for one in results.validation_failures):
        return True
    return any(_lost(results, number, purpose) for purpose in TESTING)


def _lost(results: StudyResults, number: int, purpose: Purpose) -> bool:
    found = replays_of(results, number, purpose)
    if not found or shown(results, number, purpose) is not None:
        return False
    enough = len(found) >= FIRST_REPLAYS if purpose == "repeat" else next_scale(results, number, purpose) is None
    return enough or any(one.misses_quality for one in found)


def _race(results: StudyResults) -> Iterator[Turn]:
    candidates, slope = entrants(results), field(results)[1]
    if (turn := next_replay(candidates, LADDER, slope, REPLAYS_EACH * len(candidates))) is not None:
        yield Turn(candidates[turn[0]].number, "repeat", LADDER[turn[1]])
    elif results.spec.traffic.holdout_window is not None:
        best = choose([replace(one, out=one.out or one.number == 0) for one in candidates], slope)
        chosen = [] if best is None else [candidates[best].number]
        yield from _turns(results, [*chosen, 0], ("holdout",))


def _one_by_one(results: StudyResults) -> Iterator[Turn]:
    """Where there is one load, or nobody to race: the baseline, then finalists in the order of the rule until enough
    were measured and one of them holds."""
    purposes: tuple[Purpose, ...] = ("repeat",)
    if results.spec.traffic.holdout_window is not None:
        purposes = ("repeat", "holdout")
    yield from _turns(results, [0], purposes)
    best, finalists = recommend(replace(results, validations=(), validation_failures=())), results.spec.budget.finalists
    ranked = [one.number for one in (best.trial, *best.runners_up) if finalists and one is not None and one.number]
    for position, number in enumerate(ranked):
        if position >= finalists and held(results).intersection(ranked[:position]):
            return
        yield from _turns(results, [number], purposes)


def _turns(results: StudyResults, numbers: Iterable[int], purposes: tuple[Purpose, ...]) -> Iterator[Turn]:
    for number in numbers:
        for purpose in purposes:
            if (scale := next_scale(results, number, purpose)) is not None:
                yield Turn(number, purpose, scale)


def next_scale(results: StudyResults, number: int, purpose: Purpose) -> float | None:
    """Where a trial is to be measured next for this purpose outside the race; None when enough is known, or it failed.

    At one load a miss of what held in the search is believed when two of three replays miss; then it goes down the
    ladder.
    """
    found = replays_of(results, number, purpose)
    if any((one.trial, one.purpose) == (number, purpose) for one in results.validation_failures):
        return None
    if not found:
        return 1.0 if purpose == "recorded_rate" else _first_scale(results, number)
    lowest = min(one.time_scale for one in found)
    if any(one.misses_quality for one in found) or shown(results, number, purpose) is not None:
        return None
    held_before = results.trials[number].state == "feasible"
    if held_before and undecided([one.holds for one in found if one.time_scale == lowest]):
        return lowest
    fixed = not climbs(results) or purpose == "recorded_rate"
    return None if fixed or len({one.time_scale for one in found}) > DESCENT else ladder.below(lowest)


def _first_scale(results: StudyResults, number: int) -> float:
    """What the repeats showed, or else the search."""
    repeated = shown(results, number, "repeat")
    return repeated.time_scale if repeated is not None else results.trials[number].time_scale or results.time_scale


def _race_in_words(results: StudyResults) -> str:
    candidates, slope = entrants(results), field(results)[1]
    everyone = zip(candidates, estimates(candidates, slope), strict=True)
    standing = [(one.number, found) for one, found in everyone if not one.out and one.replays]
    if not standing:
        return f"finals: of {len(candidates)} candidates none stands"
    number, replays = max(standing, key=lambda pair: pair[1].mean)[0], sum(len(one.replays) for one in candidates)
    name = "the baseline" if number == 0 else f"trial {number}"
    held_at = shown(results, number, "repeat")
    claim = "no load" if held_at is None else f"{held_at.time_scale:.3g}x the recorded rate"
    return (
        f"finals: after {replays} replays {name} is the best of {len(standing)} with probability "
        f"{max(decided([found for _, found in standing]), 0.0):.2f}; one more replay should hold {claim}"
    )


def _measure(bench: Bench, results: StudyResults, turn: Turn) -> None:
    """Measure one configuration again. A failure is stored: it counts until a resumed study has measured this. The
    first repeat asks the probes of the last gate and checks the speculation; what it found holds for the others."""
    config = bench.plan.config(results.trials[turn.trial].knobs)
    window = "holdout" if turn.purpose == "holdout" else "tune"
    first = turn.purpose == "repeat" and not replays_of(results, turn.trial, "repeat")
    bench.report.begin(f"{turn.purpose.replace('_', ' ')} of trial {turn.trial}")
    bench.report.at(turn.time_scale)
    load = bench.plan.load(window, turn.time_scale)
    try:
        measured = bench.measure(turn.trial, config, load, turn.purpose, final=first)
    except ServingError as error:
        reason, detail = error.reason, str(error)
    else:
        if (doubt := disqualifying_doubt(bench.plan, measured)) is None:
            return
        reason, detail = doubt.name, doubt.detail
    failure = ValidationFailure(turn.trial, turn.purpose, window, turn.time_scale, reason, detail)
    bench.store.save_validation_failure(bench.study_name, failure)
    bench.report.note(f"{turn.purpose} of trial {turn.trial} failed: {reason}: {detail}")
