"""How sure the recommendation is, question by question, from the stored results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from reports import doubts, verifications
from reports.evidence import NOTHING, Evidence
from reports.scenarios import NAMES
from reports.text import interval, number, percent, plain
from tuner.reasons import measured_again
from tuner.recommend import TESTING, Recommendation, held
from tuner.results import StudyResults, TrialResult
from tuner.scoring.metrics import Interval
from tuner.worth import Proven, proven

SPREAD = 2 * NormalDist().inv_cdf(0.975)
"""Standard errors between the ends of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Row:
    """One question. answer: a few words. holds: whether it speaks for the recommendation."""

    question: str
    answer: str
    holds: bool
    detail: str


def info(results: StudyResults, recommendation: Recommendation, evidence: Evidence = NOTHING) -> tuple[Row, ...]:
    """Rows in the order of the questions; none without a recommended trial."""
    if recommendation.trial is None:
        return ()
    return tuple(_rows(results, recommendation.trial, evidence))


def _rows(results: StudyResults, chosen: TrialResult, evidence: Evidence) -> Iterator[Row]:
    assert chosen.traffic is not None
    baseline = results.baseline
    if chosen.number != baseline.number and baseline.traffic is not None:
        yield _more(proven(results, chosen), proven(results, baseline))
    yield _again(results, chosen)
    since = [row for row in verifications.info(results, evidence) if row.trial == chosen.number]
    if since:
        yield _verified(since[-1])
    yield _proven(proven(results, chosen))
    found = [row for row in doubts.info(results, chosen.number) if chosen.number in row.trials]
    detail = "; ".join(f"{row.doubt}: {row.advice}" for row in found) or "no check of its trial raised one"
    yield Row("Is its trial in the search above doubt?", _count(len(found)) if found else "yes", not found, detail)


def _count(doubts: int) -> str:
    return "1 doubt" if doubts == 1 else f"{doubts} doubts"


def _more(new: Proven, old: Proven) -> Row:
    sure = exceeds(new.goodput, old.goodput)
    figures = (
        f"{interval(one.goodput)} requests/s at {plain(one.time_scale)}x ({NAMES[one.purpose]})" for one in (new, old)
    )
    detail = f"{' against '.join(figures)}; intervals taken as normal and independent"
    return Row("Does it serve more than the baseline?", f"{percent_sure(sure)} likely", sure >= 0.95, detail)


def exceeds(new: Interval, old: Interval) -> float:
    """Probability that the value behind `new` is the larger one, of normal and independent estimates."""
    error = ((new.high - new.low) ** 2 + (old.high - old.low) ** 2) ** 0.5 / SPREAD
    difference = new.value - old.value
    return NormalDist(sigma=error).cdf(difference) if error else 0.5 + 0.5 * ((difference > 0) - (difference < 0))


def percent_sure(probability: float) -> str:
    """Whole per cent, never 0 or 100: nothing measured is certain."""
    if probability > 0.995:
        return "> 99 %"
    return "< 1 %" if probability < 0.005 else f"{probability * 100:.0f} %"


def _again(results: StudyResults, chosen: TrialResult) -> Row:
    question = "Does it hold when measured again?"
    failed = [one for one in results.validation_failures if one.trial == chosen.number and one.purpose in TESTING]
    told = measured_again(results, chosen)
    told += [f"{one.reason} at {plain(one.time_scale)}x: {one.detail}." for one in failed]
    if not told:
        return Row(question, "not tried", False, "it was not measured again after the search")
    searched = f"The search saw it hold {plain(chosen.time_scale or results.time_scale)}x."
    if chosen.number not in held(results):
        return Row(question, "missed", False, " ".join([*told, searched]))
    return Row(question, f"held {plain(proven(results, chosen).time_scale)}x", True, " ".join([*told, searched]))


def _verified(last: verifications.Row) -> Row:
    why = last.failure or (f"missed {', '.join(last.missed)}" if last.missed else last.comparison)
    detail = f"{verifications.moment(last)}, {last.traffic} at {plain(last.time_scale)}x: {why or 'nothing measured'}"
    if last.comparison in ("better", "worse", "not told apart") and not (last.failure or last.missed):
        detail += " than the baseline" if last.comparison != "not told apart" else " from the baseline"
    return Row("Did it hold when verified last?", "it held" if last.holds else "it did not hold", last.holds, detail)


def _proven(worth: Proven) -> Row:
    """By the one replay that it is worth by."""
    classes = worth.traffic.classes.values()
    known = [one for one in classes if one.lower >= one.target]
    detail = "; ".join(
        f"{one.name}: at least {percent(one.lower)} good, {percent(one.target)} promised, "
        f"{number(one.effective)} independent requests"
        for one in classes
    )
    where = f"{NAMES[worth.purpose]} at {plain(worth.replayed_scale)}x: "
    answer = f"{len(known)} of {len(classes)} classes"
    return Row(
        "Is each SLO proven for traffic of this kind (95 %)?", answer, len(known) == len(classes), where + detail
    )


def sentence(rows: Sequence[Row]) -> str:
    """The answers in one sentence; "" where there are none."""
    words = {
        "Does it serve": "{} to serve more than the baseline",
        "Does it hold": "measured again it {}",
        "Did it hold when verified": "verified last, {}",
        "Is each SLO": "SLOs proven at 95 % for {}",
        "Is its trial": "{} about its trial in the search",
    }
    told = []
    for row in rows:
        form = next(form for start, form in words.items() if row.question.startswith(start))
        answer = "no doubt" if row.answer == "yes" else row.answer
        told.append(form.format(answer) if row.answer != "not tried" else "not measured again")
    return f"How sure: {'; '.join(told)}." if told else ""
