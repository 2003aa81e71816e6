"""A run's directory as the commands read it: its database, what it says, and the raw records behind that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from reports.evidence import Evidence
    from tuner.recommend import Recommendation
    from tuner.results import StudyResults

DATABASE = "study.db"
STUDY_FILE = "study.yaml"
SHOWN_RUNS = 5

RunArgument = Annotated[Path, typer.Argument(help="Directory of a run, such as runs/demo.")]
StudyOption = Annotated[
    Path | None, typer.Option(help="Score by the SLOs and floors of this study file, without an engine.")
]


def open_run(directory: Path, study: Path | None = None) -> tuple[StudyResults, Recommendation]:
    """The results of a run, scored by the SLOs and floors of `study` where one is given."""
    from tuner.recommend import recommend
    from tuner.results import load_results
    from tuner.spec import load_spec
    from tuner.store import Store

    path = database_of(directory)
    with Store(path, create=False) as store:
        names = store.study_names()
        if not names:
            raise ValueError(f"{path}: holds no study")
        results = load_results(store, names[0], load_spec(study) if study is not None else None)
    return results, recommend(results)


def retune_conditions(results: StudyResults, found: Recommendation) -> tuple[str, ...]:
    """When to tune again."""
    from tuner.retune import conditions, retune_when

    when = retune_when(results, found)
    return () if when is None else conditions(when)


def evidence_of(run: Path) -> Evidence:
    """The raw records behind the figures of a run's report."""
    from reports.evidence import load_evidence
    from tuner.store import Store

    with Store(database_of(run), create=False) as store:
        return load_evidence(store, store.study_names()[0])


def database_of(run: Path) -> Path:
    """The database of a run's directory; the file itself where it is given. Raises ValueError where there is no run."""
    path = run if run.suffix == ".db" else run / DATABASE
    if not path.is_file():
        raise ValueError(f"{run}: no run here ({path.name} is missing); {_instead(run)}")
    return path


def runs_under(directory: Path) -> list[Path]:
    """The directories of runs in a directory of runs, by name."""
    return [database.parent for database in sorted(directory.glob(f"*/{DATABASE}")) if database.is_file()]


def _instead(missing: Path) -> str:
    """The run that was meant, or those that there are: in that directory, beside it, under ./runs."""
    import difflib

    found = dict.fromkeys(run for near in (missing, missing.parent, Path("runs")) for run in runs_under(near))
    if not found:
        return "tune run STUDY.yaml makes one"
    if near := difflib.get_close_matches(missing.name, [run.name for run in found], n=1):
        return f"did you mean {next(run for run in found if run.name == near[0])}?"
    shown = ", ".join(str(run) for run in list(found)[:SHOWN_RUNS])
    return f"runs: {shown}" + (f" and {len(found) - SHOWN_RUNS} more" if len(found) > SHOWN_RUNS else "")
