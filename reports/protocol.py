"""The sections about how the study went: robustness, course, and what was measured where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reports import scenarios, study_history, timeline
from reports.deciding import Replays
from reports.parts import Cell, Figure, Paragraph, Section, Table, value, verdict, word
from reports.style import FAILED
from reports.text import NONE, flat, interval, number, percent, plain
from tuner.results import StudyResults
from tuner.stopping import WORDS, Stop


def robustness(rows: Sequence[scenarios.Row]) -> Section:
    """The finalists, measured again under other circumstances."""
    title = "Robustness"
    if not rows:
        return Section("robustness", title, (Paragraph("No configuration was measured again after the search."),))
    figure = Figure(
        "scenarios", scenarios.plot(rows),
        "Goodput by scenario for baseline, recommended and other finalists, with 95 % intervals; the table below "
        "holds the same values.",
        "Goodput with 95 % intervals at the highest load at which most replays held, or else (hollow) at the lowest "
        "that was tried. What failed is in the table only.",
    )  # fmt: skip
    about = Paragraph(
        "Load: times the recorded rate; of several replays there, the median one by goodput, and how many held. "
        "Headroom: of the SLO class that is closest to its bounds, the share of them that is left.",
        note=True,
    )
    return Section("robustness", title, (figure, _scenarios(rows), about))


def _scenarios(rows: Sequence[scenarios.Row]) -> Table:
    columns = ("scenario", "trial", "load", "offered (requests/s)", "goodput (requests/s)", "headroom", "held",
               "missed or failed")  # fmt: skip
    return Table(columns, tuple((one.row.role, _scenario(one)) for one in scenarios.replays(rows)))


def _scenario(replays: Replays[scenarios.Row]) -> tuple[Cell, ...]:
    row = replays.row
    goodput = Cell(NONE, "") if row.goodput is None else Cell(interval(row.goodput), row.goodput.value)
    return (
        word(scenarios.name(row.scenario)), Cell(f"{row.trial} {row.role}", row.trial),
        Cell(f"{plain(row.time_scale)}x", row.time_scale), value(number(row.offered), row.offered), goodput,
        value(percent(row.headroom), row.headroom), verdict(replays.holds, replays.told),
        word(row.failure or ", ".join(row.missed), "text"),
    )  # fmt: skip


def course(
    history: Sequence[study_history.Row],
    reasons: Sequence[study_history.Reason],
    clock: Sequence[timeline.Row],
    counts: Mapping[str, int],
    ended: Stop | None,
) -> Section:
    """How the search went, what failed, and where the time went."""
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    parts: list[Figure | Table | Paragraph] = [
        Figure(
            "history", study_history.plot(history),
            "Goodput of the trials in order, with the best feasible goodput so far: "
            f"{number(history[-1].best)} requests per second at the end.",
            f"{len(history)} trials with the baseline: {told}. All as the search saw them{_unmeasured(history)}.",
        )
    ]  # fmt: skip
    if ended is not None:
        parts.append(Paragraph(f"The search ended: {WORDS[ended]}."))
    if reasons:
        cells = [
            ("", (word(row.reason), Cell(str(len(row.trials)), len(row.trials)),
                  word(", ".join(map(str, row.trials)), "text"), word(row.detail, "text")))
            for row in reasons
        ]  # fmt: skip
        parts.append(Table(("ended because", "trials", "numbers", "the first of them"), tuple(cells)))
    if clock:
        parts += _clock(clock)
    return Section("course", "Course of the study", tuple(parts))


def _unmeasured(history: Sequence[study_history.Row]) -> str:
    return "; what failed is drawn at the bottom" if any(row.state == FAILED for row in history) else ""


def _clock(rows: Sequence[timeline.Row]) -> Iterator[Figure | Table]:
    yield Figure(
        "timeline", timeline.plot(rows),
        "Every measurement on the clock, one line a phase; the table below holds the sums.",
        f"Every measurement by what it was for; {number(max(row.end for row in rows) / 60)} minutes in all.",
    )  # fmt: skip
    columns = ("phase", "measurements", "seconds", "of them reconfiguring", "replaying", "asking probes")
    cells = [
        ("", (word(timeline.phase_name(row.phase)), value(str(row.measurements), row.measurements),
              *(Cell(f"{part:,.1f}", part) for part in (row.total, row.reconfigure, row.replay, row.quality))))
        for row in timeline.spent(rows)
    ]  # fmt: skip
    yield Table(columns, tuple(cells))


def surroundings(results: StudyResults, told: Sequence[str]) -> Section:
    """How the load was found, the machine, the versions and the hashes of what was measured. told: how it was
    measured and chosen, a paragraph each."""
    steps = scenarios.calibration(results)
    parts: list[Paragraph | Table] = [Paragraph(one, note=True) for one in told]
    if steps:
        parts.append(_scenarios(steps))
        parts.append(Paragraph("How the load was found: replays of the baseline.", note=True))
    facts = [("", (word(key), word(told, "text"))) for key, told in _facts(results)]
    parts.append(Table(("of the measurement", "value"), tuple(facts), words=2))
    return Section("where", "What was measured where", tuple(parts))


def _facts(results: StudyResults) -> Iterator[tuple[str, str]]:
    """Environment and provenance; what the provenance repeats of the environment is told once. The traffic's profile is
    for machines: the thresholds for tuning again tell it in words."""
    provenance: dict[str, Any] = {key: told for key, told in results.provenance.items() if key != "traffic"}
    if provenance.get("environment") == results.environment:
        del provenance["environment"]
    for key, told in flat({"environment": results.environment, "provenance": provenance}):
        yield key, f"{number(int(told) / 2**30)} GiB" if key.endswith("memory_bytes") and told.isdigit() else told
