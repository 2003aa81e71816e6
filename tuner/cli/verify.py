"""`tune verify`: does a recommendation still hold?"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli.errors import NOTHING_FEASIBLE, REFUSED
from tuner.cli.run_directory import RunArgument, database_of
from tuner.cli.study import stopping

if TYPE_CHECKING:
    from rich.table import Table

    from tuner.results import StudyResults, TrialResult
    from tuner.retune import Drift
    from tuner.store import Store
    from tuner.traffic.trace import Trace
    from tuner.verification import Verification, Verified
    from tuner.verify import Question


def verify(
    run: RunArgument,
    trace: Annotated[Path | None, typer.Option(help="Other traffic than the study's, such as last week's.")] = None,
    window: Annotated[
        str | None, typer.Option(help="START:END in seconds of --trace; of the study's own traffic, tune or holdout.")
    ] = None,
    time_scale: Annotated[
        float | None, typer.Option(help="How many times faster than recorded; default the load it was chosen at.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Replays of each configuration.", min=1)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a recommendation again beside the baseline, by turns, under the same requests: does it still hold?

    Exit status 1 when it does not: an SLO or a quality floor is missed, its engine fails, or the baseline serves more.
    3 when there is nothing to verify.

    Example: tune verify runs/demo --trace last-week.jsonl
    """
    from tuner.recommend import recommend
    from tuner.results import load_results
    from tuner.retune import drifts, retune_when
    from tuner.store import Store

    path = database_of(run)
    with Store(path, create=False) as store:
        names = store.study_names()
        if not names:
            raise ValueError(f"{path}: holds no study")
        results = load_results(store, names[0])
        found = recommend(results)
        if found.trial is None or not found.deployable:
            typer.echo(f"nothing to verify: {found.verdict}", err=True)
            raise typer.Exit(NOTHING_FEASIBLE)
        question = _question(results, found.trial, trace, window, time_scale, rounds)
        verified, traffic = _measure(results, question, store, path.parent)
    when = retune_when(results, found)
    acceptance = None if verified.recommended is None else verified.recommended.acceptance
    drifted = () if when is None or trace is None else drifts(when, traffic, acceptance)
    if as_json:
        typer.echo(json.dumps(_as_dict(verified, drifted), indent=2))
    else:
        _print(verified, drifted)
    if not verified.holds:
        raise typer.Exit(REFUSED)


def _question(
    results: StudyResults,
    chosen: TrialResult,
    trace: Path | None,
    window: str | None,
    time_scale: float | None,
    rounds: int,
) -> Question:
    from tuner.loadtest import parse_window
    from tuner.verify import Question
    from tuner.worth import proven

    if time_scale is not None and not 0 < time_scale < math.inf:
        raise ValueError(f"--time-scale {time_scale:g}: expected a number above 0")
    scale = time_scale or proven(results, chosen).time_scale
    if trace is not None:
        return Question(chosen.number, scale, rounds, trace, parse_window(window) if window else None)
    if window not in (None, "tune", "holdout"):
        raise ValueError(f"--window {window}: expected tune or holdout; seconds belong to a --trace")
    held_out = results.spec.traffic.holdout_window is not None if window is None else window == "holdout"
    return Question(chosen.number, scale, rounds, held_out=held_out)


def _measure(results: StudyResults, question: Question, store: Store, directory: Path) -> tuple[Verification, Trace]:
    """What was found, and the traffic that it was found on."""
    from tuner.console import StudyConsole
    from tuner.environment import environment
    from tuner.serving.testbed import EngineSettings, LiveTestbed
    from tuner.verify import verification_plan, verify

    plan = verification_plan(results.spec, question)  # a mistake must be told before an engine starts
    engine, machine = results.spec.engine, environment()
    settings = EngineSettings(directory, engine.launcher, engine.launch_timeout, engine.hang_timeout)
    with (
        stopping(),
        StudyConsole(results.spec) as console,
        LiveTestbed(settings, machine, console.phase) as testbed,
    ):
        found = verify(results, question, store, testbed, console, machine)
    return found, plan.windows["holdout" if question.held_out else "tune"]


def _as_dict(found: Verification, drifted: Sequence[Drift]) -> dict[str, Any]:
    return {
        "holds": found.holds,
        "comparison": found.comparison,
        "missed": found.missed,
        "verdict": verdict(found),
        **{key: value for key, value in asdict(found).items() if key != "doubts"},
        "doubts": [asdict(doubt) for doubt in found.doubts],
        "drift": [asdict(drift) for drift in drifted],
    }


def verdict(found: Verification) -> str:
    """In one sentence."""
    about = found.about
    where = f"on {about.window if about.window != 'new' else Path(about.trace).name} at {about.time_scale:g}x"
    subject = f"Trial {about.trial}" if about.trial else "The baseline, which is recommended,"
    if about.failure is not None:
        return f"{subject} no longer holds {where}: its engine failed ({about.failure})."
    if found.missed:
        missed = ", ".join(f"{name} by {value:.3f}" for name, value in sorted(found.missed.items()))
        return f"{subject} no longer holds {where}: it misses {missed}."
    if found.comparison == "worse":
        return f"{subject} no longer pays {where}: the baseline serves more good requests."
    than = {
        "better": ", and serves more good requests than the baseline",
        "not told apart": ", but is not shown to serve more good requests than the baseline",
    }.get(str(found.comparison), "")
    return f"{subject} still holds {where}: every SLO and quality floor is met{than}."


def _print(found: Verification, drifted: Sequence[Drift]) -> None:
    from rich.text import Text

    from tuner.terminal import output

    console = output(soft_wrap=True)
    console.print(Text(verdict(found), style="bold"))
    sides = [side for side in (found.baseline, found.recommended if found.about.trial else None) if side is not None]
    console.print(_sides(sides))
    if (one := found.difference) is not None:
        console.print(
            f"difference {one.value:+.2f} good requests/s [{one.low:+.2f}, {one.high:+.2f}] (95 %, paired by request)",
            markup=False,
        )
    for name, value in found.quality.items():
        console.print(Text(f"quality {name}: {'missed' if value > 0 else 'held'} by {abs(value):.4f}"))
    for drift in drifted:
        tuned = "" if drift.tuned is None else f", tuned on {drift.tuned:.3g}"
        advice = ": tune again" if drift.exceeded else ""
        console.print(Text(f"traffic: {drift.what} {drift.now:.3g}{tuned} (limit {drift.limit:.3g}){advice}"))
    for doubt in found.doubts:
        console.print(Text(f"doubt: {doubt.name}: {doubt.detail}; {doubt.advice}"))


def _sides(sides: list[Verified]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    rows: dict[str, list[str]] = {"goodput (requests/s)": [], "by round": []}
    for side in sides:
        table.add_column(f"trial {side.trial}" if side.trial else "baseline", justify="right")
        rows["goodput (requests/s)"].append(f"{side.mean_goodput:.2f}")
        rows["by round"].append(", ".join(f"{value:.2f}" for value in side.goodput))
        for name, value in side.violations.items():
            state = "missed" if value > 0 else "met"
            cell = f"{side.attainment[name]:.3f} ({state} by {abs(value):.3f})"
            rows.setdefault(f"{name} attainment", []).append(cell)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table
