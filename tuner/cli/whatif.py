"""`tune whatif`: a study scored again by other SLOs, beside what it said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.errors import NOTHING_FEASIBLE
from tuner.cli.output_file import check_output
from tuner.cli.run_directory import RunArgument, database_of

if TYPE_CHECKING:
    from rich.table import Table

    from tuner.recommend import Recommendation
    from tuner.whatif import WhatIf


def whatif(
    run: RunArgument,
    slo: Annotated[
        Path, typer.Option(help="A study file, or only its slos, quality floors, tail or cost; null removes a bound.")
    ],
    report: Annotated[Path | None, typer.Option(help="Also write a report of the study as scored now.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a study's records by other SLOs, floors, tail or cost, without an engine, beside what it recommended.

    Exit status 3 when nothing can be deployed then.

    Example: tune whatif runs/demo --slo tighter.yaml
    """
    from reports.evidence import load_evidence
    from reports.page import write_report
    from tuner.store import Store
    from tuner.whatif import as_dict
    from tuner.whatif import whatif as ask

    path = database_of(run)
    if report is not None:
        check_output("--report", report, path, slo, makes_directory=True)
    with Store(path, create=False) as store:
        names = store.study_names()
        if not names:
            raise ValueError(f"{path}: holds no study")
        found = ask(store, names[0], slo)
        evidence = load_evidence(store, names[0])
    if report is not None:
        write_report(found.results, found.after, report, evidence)
    if as_json:
        typer.echo(json.dumps(as_dict(found), indent=2))
    else:
        _print(found)
        if report is not None:
            typer.echo(f"wrote {report}")
    if not found.after.deployable:
        raise typer.Exit(NOTHING_FEASIBLE)


def _print(found: WhatIf) -> None:
    from rich.text import Text

    from tuner.terminal import output

    console = output(soft_wrap=True)
    for key, (old, new) in found.changes.items():
        console.print(Text(f"{key}: {_plain(old)} -> {_plain(new)}"))
    if not found.changes:
        console.print("nothing in the file differs from the study's own")
    console.print(Text(f"before: {found.before.verdict}"))
    console.print(Text(f"now: {found.after.verdict}", style="bold"))
    console.print(Text(_standing(found)))
    console.print(_sides(found.before, found.after))
    console.print(_bindings(found))
    for words in found.unknown:
        console.print(Text(f"not known: {words}"))


def _plain(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _standing(found: WhatIf) -> str:
    """Whether the old recommendation holds."""
    old = found.before.trial
    if old is None:
        return "There was no recommendation before."
    if found.old_missed:
        missed = ", ".join(f"{name} by {value:.3f}" for name, value in sorted(found.old_missed.items()))
        return f"The old recommendation, trial {old.number}, no longer holds: it misses {missed}."
    if not found.holds:
        return f"The old recommendation, trial {old.number}, no longer holds."
    return f"The old recommendation, trial {old.number}, still holds" + (
        "." if found.same else ", but is not the best."
    )


def _sides(before: Recommendation, after: Recommendation) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "before", "now"):
        table.add_column(heading, justify="left" if not heading else "right")
    cells = zip(*(_side(side) for side in (before, after)), strict=True)
    for name, row in zip(
        ("trial", "goodput (requests/s)", "at times the recorded rate", "binds most"), cells, strict=True
    ):
        table.add_row(name, *row)
    return table


def _side(found: Recommendation) -> tuple[str, str, str, str]:
    trial = found.trial or found.least_violating
    if trial is None:
        return ("none", "-", "-", "-")
    number = str(trial.number) if found.trial is not None else f"none (closest {trial.number})"
    gains = {gain.name: gain for gain in found.gains}
    goodput = gains["goodput"].recommended_interval if "goodput" in gains else None
    shown = "-" if goodput is None else f"{goodput.value:.2f} [{goodput.low:.2f}, {goodput.high:.2f}]"
    load = _plain(gains["load"].recommended) if "load" in gains else "-"
    name, value = max(trial.constraints.items(), key=lambda item: item[1])
    return (number, shown, load, f"{name} {'missed' if value > 0 else 'met'} by {abs(value):.3f}")


def _bindings(found: WhatIf) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("constraint", "missed before", "missed now", "of replays"):
        table.add_column(heading, justify="left" if heading == "constraint" else "right")
    for one in found.bindings:
        counts = (str(count) for count in (one.missed_before, one.missed_after, one.measured))
        table.add_row(Text(one.name), *counts)
    return table
