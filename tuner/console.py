"""What the terminal shows: one live line during a study (plain lines where there is no terminal), tables at its end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tuner.alternatives import Alternative
from tuner.recommend import AT_ITS_LOAD, AT_RECORDED_RATE, Gain, Recommendation
from tuner.scoring.doubts import Doubt
from tuner.scoring.fairness import HEAD_OF_LINE_GATE, JAIN_GATE
from tuner.scoring.metrics import ClassMetrics, TrafficMetrics
from tuner.scoring.slo import SLO
from tuner.spec import StudySpec
from tuner.stopping import WORDS, Stop
from tuner.terminal import output

if TYPE_CHECKING:  # they reach the engine's client, which a recommendation is printed without
    from tuner.capacity import Capacity, Tried
    from tuner.fairness import Fairness
    from tuner.outcome import Outcome

SHOWN_METRICS = ("ttft", "tpot")


class StudyConsole:
    """Shows a study as it runs, on standard error. Its methods are those of study.Reporter; phase is the testbed's."""

    def __init__(self, spec: StudySpec, console: Console | None = None) -> None:
        self._spec = spec
        self._console = console or output(stderr=True)
        # Redrawn when something happens: a thread that redraws would cost the replay its punctuality.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._doing, self._scale = "", ""
        self._baseline: float | None = None
        self._best: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin(self, what: str) -> None:
        self._doing, self._scale = what, ""
        if self._console.is_terminal:
            self.phase("start", 0.0)
        elif not what.startswith(("trial ", "baseline")):
            self._line(what)

    def at(self, time_scale: float) -> None:
        self._scale = f" x{time_scale:.3g}"

    def resumed(self, earlier: Mapping[int, Outcome]) -> None:
        for number, outcome in earlier.items():
            self._note_best(number, outcome)
        if earlier:
            self._line(f"resumed after {len(earlier)} measured trials  [{self._standing()}]")

    def phase(self, phase: str, share: float) -> None:
        """The testbed is in this phase and has done this share of it."""
        if self._live.is_started:
            done = f" {share:.0%}" if share else ""
            self._live.update(Text(f"{self._doing}{self._scale} · {phase}{done} · {self._standing()}"), refresh=True)

    def note(self, text: str) -> None:
        self._line(text)

    def _line(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def trial_ended(self, number: int, outcome: Outcome) -> None:
        name = "baseline" if number == 0 else f"trial {number}"
        if self._doing.startswith(f"{name} "):
            name = self._doing
        if outcome.objectives is None:
            self._line(f"{name:<16} {outcome.state:<10} {outcome.reason}: {outcome.detail}")
            return
        goodput, quality, tail = outcome.objectives
        self._note_best(number, outcome)
        state = "feasible" if outcome.feasible else "infeasible"
        known = "-" if outcome.reason and not quality else f"{quality:.4f}"  # a stopped replay asks no probes
        load = "" if outcome.time_scale is None else f"x{outcome.time_scale:.3g}  "
        figures = f"{load}goodput {goodput:.2f}/s  quality {known}  {self._tail_name} {tail:.3f} s"
        stopped = "  stopped early" if outcome.reason else ""
        self._line(f"{name:<16} {state:<10} {figures}{stopped}  [{self._standing()}]")

    def _note_best(self, number: int, outcome: Outcome) -> None:
        assert outcome.objectives is not None
        goodput = outcome.objectives[0]
        if number == 0:
            self._baseline = goodput
        if outcome.feasible and (self._best is None or goodput > self._best[0]):
            self._best = (goodput, number)

    @property
    def _tail_name(self) -> str:
        tail = self._spec.tail
        return f"{tail.slo_class} p{tail.percentile:g} {tail.metric}"

    def _standing(self) -> str:
        baseline = "" if self._baseline is None else f", baseline {self._baseline:.2f}/s"
        if self._best is None:
            return f"none feasible yet{baseline}"
        return f"best {self._best[0]:.2f}/s (trial {self._best[1]}){baseline}"


def print_recommendation(
    found: Recommendation, files: Iterable[Path] = (), retune: Iterable[str] = (), ended: Stop | None = None
) -> None:
    """Verdict, baseline against recommended, reasons, when to tune again, why the search ended, files written; on
    standard output."""
    console = output()
    console.print(Text(found.verdict, style="bold"))
    if found.gains:
        console.print(_gain_table(found.gains, "recommended" if found.trial is not None else "closest"))
    for reason in found.reasons:
        console.print(Text(f"- {reason}"))
    if found.alternatives:
        console.print(_alternatives_table(found.alternatives))
    for condition in retune:
        console.print(Text(f"- Tune again when {condition}."))
    if ended is not None:
        console.print(Text(f"The search ended: {WORDS[ended]}."))
    for path in files:
        console.print(Text(f"wrote {path}"), soft_wrap=True)


def _alternatives_table(found: Sequence[Alternative]) -> Table:
    """What else could be deployed, the recommended one first."""
    table = Table(box=None, pad_edge=False)
    for heading in ("alternative", "trial", "goodput (requests/s)", "load", "quality", "tail (s)", "memory (MiB)",
                    "KV of a sequence (MiB)", "goodput of"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "alternative" else "right")
    for place, one in enumerate(found):
        assert one.trial.objectives is not None
        quality, tail = one.trial.objectives[1], one.worth.tail_latency
        goodput, taken = one.worth.goodput, one.memory
        table.add_row(
            ", ".join(one.labels if place else ("recommended", *one.labels)), str(one.trial.number),
            f"{goodput.value:.2f} [{goodput.low:.2f}, {goodput.high:.2f}]", f"{one.worth.time_scale:.3g}x",
            f"{quality:.4f}", f"{tail:.4f}", "-" if taken is None else f"{taken.total / 2**20:.1f}",
            "-" if taken is None else f"{taken.sequence / 2**20:.3g}", one.origin,
        )  # fmt: skip
    return table


def print_replay(metrics: TrafficMetrics, slos: Mapping[str, SLO], doubted: Sequence[Doubt]) -> None:
    """What `tune replay` found, class by class; on standard output."""
    console = output()
    offered = sum(found.offered for found in metrics.classes.values())
    good = sum(found.good for found in metrics.classes.values())
    rate = f"{metrics.offered_rate:.2f}/s over {metrics.duration:.1f} s"
    console.print(f"offered {offered} ({rate}), good {good} ({metrics.goodput.value:.2f}/s)", markup=False)
    lag = metrics.send_lag.get(99)
    console.print(f"send lag p99 {'-' if lag is None else f'{lag * 1e3:.1f} ms'}")
    console.print(_replay_table(metrics.classes.values(), slos))
    console.print(_share_table("class", metrics.classes.values()))
    if len(metrics.tenants) > 1:
        console.print(_share_table("tenant", metrics.tenants.values()))
    _print_doubts(console, doubted)


def _print_doubts(console: Console, doubted: Iterable[Doubt]) -> None:
    for doubt in doubted:
        mark = "not to be compared" if doubt.severity == "disqualifying" else "doubt"
        console.print(f"{mark}: {doubt.name}: {doubt.detail}; {doubt.advice}", markup=False, soft_wrap=True)


def print_tried(tried: Tried) -> None:
    """One replay of a search for capacity, on standard error."""
    how = (
        f"holds, at {math.exp(tried.violation):.0%} of its bounds" if tried.holds else f"misses: {_counts(tried.broke)}"
    )
    output(stderr=True).print(f"x{tried.time_scale:.3g} {how} ({tried.requests} requests)", markup=False)


def print_capacity(found: Capacity) -> None:
    """What `tune capacity` found; on standard output."""
    console = output(soft_wrap=True)
    rate = found.recorded_rate
    if found.state == "found":
        scales = f"{found.time_scale:.3g} [{found.low:.3g}, {found.high:.3g}]"
        rates = f"{found.time_scale * rate:.3g} [{found.low * rate:.3g}, {found.high * rate:.3g}]"
        console.print(f"capacity {scales} times the recorded rate, {rates} requests/s (95 % interval)", markup=False)
    else:
        where, word = found.time_scale, "at least" if found.state == "above" else "below"
        console.print(f"capacity {word} {where:.3g} times the recorded rate, {where * rate:.3g} requests/s")
    if found.broke:
        console.print(f"broke first: {_counts(found.broke)}", markup=False)
    console.print(f"{len(found.tried)} replays, {found.requests} requests")
    _print_doubts(console, found.doubts)


def print_step(what: str) -> None:
    """What is being done now, on standard error."""
    output(stderr=True).print(what, markup=False)


def print_fairness(found: Fairness) -> None:
    """What `tune fairness` found; on standard output."""
    console = output(soft_wrap=True)
    gate = "fair" if found.jain >= JAIN_GATE else f"unfair: below {JAIN_GATE:g}"
    console.print(f"Jain index of attainment {found.jain:.3f} ({gate}); worst tenant {found.worst}", markup=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("tenant", "offered", "attainment", "alone", "slowdown p50", "p95"):
        table.add_column(heading, justify="left" if heading == "tenant" else "right")
    for one in found.tenants:
        share = f"{one.attainment.value:.3f} [{one.attainment.low:.3f}, {one.attainment.high:.3f}]"
        slow = (f"{one.slowdown:.2f}", f"{one.slowdown_p95:.2f}")
        table.add_row(one.name, str(one.offered), share, f"{one.alone:.3f}", *slow)
    console.print(table)
    _print_doubts(console, found.doubts)
    if (line := found.head_of_line) is None:
        console.print("head of line: no short request stands behind a long one")
        return
    gate = "fair" if line.ratio <= HEAD_OF_LINE_GATE else f"unfair: above {HEAD_OF_LINE_GATE:g}"
    console.print(
        f"head of line: p95 TTFT of {line.behind} requests behind {line.long} long prompts (from "
        f"{line.long_prompt_tokens} tokens on) {line.ttft:.4f} s, without them {line.ttft_without:.4f} s: "
        f"{line.ratio:.2f} times ({gate})",
        markup=False,
    )


def _counts(causes: Mapping[str, int]) -> str:
    """The three most frequent."""
    return ", ".join(f"{name} ({count} requests)" for name, count in list(causes.items())[:3]) or "unfinished"


def _share_table(kind: str, groups: Iterable[ClassMetrics]) -> Table:
    """Attainment, what it proves, and the pace at which answers flow."""
    table = Table(box=None, pad_edge=False)
    for heading in (kind, "good", "of", "worth", "attainment", "proven", "target", "fluid tokens/s"):
        table.add_column(heading, justify="left" if heading == kind else "right")
    for found in groups:
        share, pace = found.attainment, found.fluid_token_rate
        table.add_row(
            found.name, str(found.good), str(found.offered), f"{found.effective:.0f}",
            f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]", f"{found.lower:.3f}", f"{found.target:g}",
            "-" if pace is None else f"{pace:.1f}",
        )  # fmt: skip
    return table


def _gain_table(gains: Iterable[Gain], last: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("baseline", last):
        table.add_column(heading, justify="right")
    for gain in gains:
        metric = gain.name.removesuffix(AT_RECORDED_RATE).removesuffix(AT_ITS_LOAD)
        if gain.name in ("load", "quality") or gain.name.startswith("goodput") or metric.endswith(SHOWN_METRICS):
            unit = f" ({gain.unit})" if gain.unit else ""
            table.add_row(f"{gain.name}{unit}", *_gain_cells(gain))
    return table


def _gain_cells(gain: Gain) -> tuple[str, str]:
    digits = 2 if gain.name.startswith("goodput") else 3 if gain.name == "load" else 4

    def cell(value: float | None, low_high: tuple[float, float] | None) -> str:
        if value is None:
            return "-"
        interval = "" if low_high is None else f" [{low_high[0]:.{digits}f}, {low_high[1]:.{digits}f}]"
        return f"{value:.{digits}f}{interval}"

    before, after = gain.baseline_interval, gain.recommended_interval
    return (
        cell(gain.baseline, None if before is None else (before.low, before.high)),
        cell(gain.recommended, None if after is None else (after.low, after.high)),
    )


def _replay_table(classes: Iterable[ClassMetrics], slos: Mapping[str, SLO]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("class", "offered", "finished", "good", "seconds", "bound", "p50", "p90", "p95", "p99"):
        table.add_column(heading, justify="left" if heading in ("class", "seconds") else "right")
    for found in classes:
        first = [found.name, str(found.offered), str(found.finished), str(found.good)]
        for metric, ranks in found.percentiles.items():
            bound = _bound(slos[found.name], metric)
            values = [f"{ranks[rank]:.4f}" for rank in (50, 90, 95, 99)]
            table.add_row(*first, metric, bound, *values)
            first = ["", "", "", ""]
        if not found.percentiles:
            table.add_row(*first)
        for error, count in sorted(found.errors.items()):
            table.add_row("", "", "", "", f"{error}: {count}")
    return table


def _bound(slo: SLO, metric: str) -> str:
    bound = slo.bounds.get(metric)
    if metric == "ttft" and slo.ttft_per_1k_prompt_tokens is not None:
        return f"{bound or 0:g} + {slo.ttft_per_1k_prompt_tokens:g}/1k"
    quantile = f" (q {slo.itl_quantile:g})" if metric == "itl" and slo.itl_quantile is not None else ""
    return "-" if bound is None else f"{bound:g}{quantile}"
