"""The sections of a study's report, in the order of a decision: figures and tables with what to know to read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports import (
    assurance,
    comparison,
    doubts,
    latency_distribution,
    pareto_front,
    slo_compliance,
    trial_table,
)
from reports.deciding import Replays
from reports.parts import Cell, Compared, Figure, Panels, Paragraph, Section, Table, value, verdict, word
from reports.text import NONE, knob_value, number, percent, percent_interval, plain, seconds
from tuner.recommend import AT_ITS_LOAD
from tuner.results import TrialResult

MOST_CLASSES, MOST_TENANTS = 6, 12
"""Classes that are drawn, tenants that are listed: those closest to their bounds. The CSV tables have all."""


def assured(rows: Sequence[assurance.Row]) -> Section:
    """How sure the recommendation is."""
    cells = [
        ("", (word(row.question), Cell(row.answer, row.answer, "yes" if row.holds else "no"), word(row.detail, "text")))
        for row in rows
    ]
    return Section("sure", "How sure is it", (Table(("question", "answer", "in figures"), tuple(cells), 3),))


def compared(rows: Sequence[comparison.Row], baseline: TrialResult, chosen: TrialResult | None) -> Section:
    """Baseline against recommended: what is measured, then what is set."""
    figures = [
        ("", (word(_metric(row)), value(comparison.shown(row.baseline, row.unit), comparison.point(row.baseline)),
              value(comparison.shown(row.recommended, row.unit), comparison.point(row.recommended)),
              value(comparison.shown_change(row.change), row.change)))
        for row in rows
    ]  # fmt: skip
    parts: list[Paragraph | Table] = [
        Table(("metric", "baseline", "recommended" if chosen is not None else "closest", "change"), tuple(figures)),
        Paragraph(f"{_measured_where(rows)} Brackets are 95 % intervals.", note=True),
    ]
    if chosen is None:
        parts.append(Paragraph("There is no recommended configuration; the trial that came closest.", note=True))
    elif chosen is baseline:
        parts.append(Paragraph("The recommended configuration is the baseline.", note=True))
    else:
        parts.append(Table(("knob", "baseline", "recommended"), tuple(_settings(baseline, chosen))))
    title = "Baseline against recommended" if chosen is not None else "Baseline against the closest"
    return Section("compared", title, tuple(parts))


def _measured_where(rows: Sequence[comparison.Row]) -> str:
    goodput = (
        "Goodput is that at the load below it, as claimed where it was measured again; at a load that was not replayed "
        "itself it is by the share of good requests at the next higher one."
    )
    if any(row.metric.endswith(AT_ITS_LOAD) for row in rows):
        return (
            f"{goodput} Latencies are those of answered requests there, or at the next higher load that was replayed."
        )
    return f"{goodput} Latencies are those of answered requests."


def _metric(row: comparison.Row) -> str:
    return row.metric if row.unit == "s" else f"{row.metric} ({row.unit})"


def _settings(baseline: TrialResult, chosen: TrialResult) -> Iterator[tuple[str, tuple[Cell, ...]]]:
    for name in dict.fromkeys([*baseline.knobs, *chosen.knobs]):
        old, new = (knob_value(name, one.knobs[name]) if name in one.knobs else NONE for one in (baseline, chosen))
        yield "", (word(name), word(old), word(new, "" if old == new else "changed"))


def front(rows: Sequence[pareto_front.Row], tail_name: str, feasible: int) -> Section:
    """Goodput against quality and tail, and two trials side by side."""
    plots = pareto_front.plot(rows, tail_name)
    label = (
        f"of {len(rows)} measured trials, {feasible} of them feasible in the search; what was measured again stands at "
        f"what is claimed: {_told(rows)}. The table of trials lists the same values."
    )
    quality = Figure(
        "pareto", plots[pareto_front.QUALITY], f"Scatter plot of goodput against quality {label}",
        f"Each marker is a measured trial; up and to the right is better. {_claimed(rows)}"
        f"On the front in the search, of all three objectives: {sum(row.on_front for row in rows)}.",
    )  # fmt: skip
    tail = Figure(
        "tail", plots[pareto_front.TAIL], f"Scatter plot of goodput against {tail_name} {label}",
        "The same trials; down and to the right is better. Trials whose goodput or quality was not measured are in "
        "neither picture. A click on a marker, or on a number in the table of trials, selects a trial.",
    )  # fmt: skip
    return Section("front", "Goodput, quality and tail latency", (quality, tail, Compared()))


def _claimed(rows: Sequence[pareto_front.Row]) -> str:
    if not any(row.claimed_goodput for row in rows):
        return "All stand where the search saw them. "
    return (
        "One that was measured again stands at what is claimed of it, on the window where that is least (held-out "
        "traffic was replayed with the best of the finals and the baseline only); a line leads to what the search saw: "
        "the best of many noisy readings is too good. "
    )


def _told(rows: Sequence[pareto_front.Row]) -> str:
    again = (
        f"{row.role or 'another finalist'} {number(row.claimed_goodput.value)}, in the search {number(row.goodput)} "
        "requests/s"
        for row in rows
        if row.claimed_goodput is not None
    )
    return "; ".join(again) or "none was"


def compliance(rows: Sequence[slo_compliance.Row]) -> Section:
    """SLO compliance by class and by tenant."""
    classes = [row for row in rows if row.group == slo_compliance.CLASS]
    drawn = slo_compliance.worst(classes, MOST_CLASSES)
    figure = Figure(
        "slo", slo_compliance.plot(drawn),
        "Bar chart of SLO attainment by class and condition; the table below holds the same values.",
        "Share of offered requests that met every bound of their SLO, with 95 % Clopper-Pearson intervals on the "
        "effective sample size; the dashed line is the target. Refused, failed and unfinished requests are misses. Of "
        "several loads, the highest that held, or else the lowest that was tried.",
    )  # fmt: skip
    tenants = [row for row in rows if row.group == slo_compliance.TENANT]
    names = {row.name for row in tenants}
    parts: list[Figure | Paragraph | Table] = [figure, _compliance("class", classes)]
    if len(names) > 1 and not slo_compliance.same(classes, tenants):
        parts.append(_compliance("tenant", slo_compliance.worst(tenants, MOST_TENANTS)))
    if len(names) > MOST_TENANTS:
        parts.append(Paragraph(f"The {MOST_TENANTS} tenants of {len(names)} with the least headroom.", note=True))
    about = (
        "Headroom: how much of its bounds is left by the request that decides (of the share that must be good, the "
        "slowest); negative where the SLO is missed. Load: times the recorded rate; of several replays there, the "
        "median one by goodput, and how many held. At least: one-sided 95 % bound of the attainment."
    )
    return Section("slo", "SLO compliance", (*parts, Paragraph(about, note=True)))


def _compliance(what: str, rows: Sequence[slo_compliance.Row]) -> Table:
    columns = (what, "condition", "configuration", "load", "attainment", "at least", "target", "headroom", "holds",
               "good",
               "p95 TTFT", "p95 TPOT")  # fmt: skip
    return Table(columns, tuple((one.row.role, _complied(one)) for one in slo_compliance.replays(rows)), words=3)


def _complied(replays: Replays[slo_compliance.Row]) -> tuple[Cell, ...]:
    row = replays.row
    return (
        word(row.name), word(row.condition), word(row.role), Cell(f"{plain(row.time_scale)}x", row.time_scale),
        value(percent_interval(row.attainment), row.attainment.value), value(percent(row.lower), row.lower),
        value(percent(row.target), row.target), value(percent(row.headroom), row.headroom),
        verdict(replays.holds, replays.told), Cell(f"{row.good} / {row.offered}", row.good),
        value(seconds(row.p95_ttft), row.p95_ttft),
        value(seconds(row.p95_tpot), row.p95_tpot),
    )  # fmt: skip


def latencies(rows: Sequence[latency_distribution.Row]) -> Section:
    """Distributions of TTFT and ITL."""
    plots = latency_distribution.plot(rows)
    panels = tuple(
        Figure(
            f"latency-{place}", figure,
            f"Distribution function of {metric.upper()} of class {name}, baseline and recommended; the tables of SLO "
            "compliance hold the 95th percentiles.",
        )
        for place, ((name, metric), figure) in enumerate(plots.items())
    )  # fmt: skip
    about = (
        "Per cent of the offered requests (TTFT, from the scheduled arrival) or of the gaps between tokens (ITL) that "
        "take at most so long. Left is better. A TTFT curve ends below 100 % where requests were "
        "refused, failed or never answered. Dotted: the SLO's bound."
    )
    return Section("latency", "Latency distributions", (Panels(panels), Paragraph(about, note=True)))


def trials(rows: Sequence[trial_table.Row], tail_name: str) -> Section:
    """Every trial."""
    about = (
        "Claimed: what holds by the replays after the search. All other figures are the search's, at its load (times "
        f"the recorded rate). Tail latency: {tail_name}, over all offered requests. Beside the tightest constraint, "
        "what is left of it, negative where it is missed: of an SLO, the share of its bounds; of quality, nats per "
        "token or a share of the answers. A heading sorts by its column; a trial's number selects it."
    )
    return Section("trials", "Trials", (trial_table.table(rows), Paragraph(about, note=True)))


def doubted(rows: Sequence[doubts.Row], retune: Sequence[str]) -> Section:
    """Doubts and what to do about them, and when to tune again."""
    cells = [
        ("", (word(row.doubt), word(row.advice, "text"), Cell(str(len(row.trials)), len(row.trials)),
              word(", ".join(map(str, row.trials)), "text")))
        for row in rows
    ]  # fmt: skip
    parts: list[Paragraph | Table] = [Paragraph("No check of the measurements raised a doubt.")]
    if rows:
        about = "Doubts about the baseline or the recommended configuration come first."
        table = Table(("doubt", "what it means and what helps", "trials", "numbers"), tuple(cells), words=2)
        parts = [table, Paragraph(about, note=True)]
    if retune:
        parts.append(Table(("tune again when",), tuple(("", (word(condition),)) for condition in retune)))
    return Section("doubts", "Doubts and advice", tuple(parts))
