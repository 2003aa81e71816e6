"""What a run hands over: report, recommended configuration, deploy files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import yaml

from reports.page import write_report
from tuner.plan import config_of
from tuner.recommend import Recommendation
from tuner.results import StudyResults
from tuner.serving.adapters import engine_config
from tuner.serving.export.files import ENGINES, Provenance, export

FILES = ("report.html", "recommended.yaml", *(f"deploy/{file}" for file in ENGINES.values()))


def deliver(results: StudyResults, found: Recommendation, directory: Path) -> list[Path]:
    """Write all files into the run's directory and return their paths; what an earlier call left is gone.

    Without a recommendation only the report is written. One that is not deployable gets no deploy files, and its
    recommended.yaml says so in its header.
    """
    for name in FILES:
        (directory / name).unlink(missing_ok=True)
    report = directory / "report.html"
    write_report(results, found, report)
    if found.trial is None:
        return [report]
    recommended = directory / "recommended.yaml"
    recommended.write_text(_recommended(results, found), encoding="utf-8")
    if refusal(found) is not None:
        return [report, recommended]
    deploy = [path for target in ENGINES for path in export_to(target, results, found, directory / "deploy")]
    return [report, recommended, *deploy]


def refusal(found: Recommendation) -> str | None:
    """Why there is nothing to deploy, in one line; None when the recommendation is deployable."""
    if found.deployable:
        return None
    return found.verdict if found.trial is None else f"Not deployable: {found.verdict}"


def export_to(
    target: str,
    results: StudyResults,
    found: Recommendation,
    out: Path,
    engine: str = "vllm",
    image: str | None = None,
) -> list[Path]:
    """Write the recommended configuration in the words of `target`. engine, image: what a manifest runs.

    Raises ValueError for an unknown target, and for a recommendation that is not deployable.
    """
    if (why := refusal(found)) is not None:
        raise ValueError(why)
    assert found.trial is not None
    provenance = Provenance(results.spec.name, found.trial.number, datetime.now(UTC).date().isoformat())
    config = config_of(results.spec, found.trial.knobs)
    return export(
        target, config, out=out, model_name=results.spec.model.name, provenance=provenance, engine=engine, image=image
    )


def _recommended(results: StudyResults, found: Recommendation) -> str:
    """A configuration that `python -m engine --config` takes, headed by why it was chosen."""
    assert found.trial is not None
    words = [f"study {results.spec.name}, trial {found.trial.number}", refusal(found) or found.verdict, *found.reasons]
    head = "".join(f"# {line}\n" for text in words for line in text.splitlines())
    values = engine_config(config_of(results.spec, found.trial.knobs)).model_dump()
    return head + yaml.safe_dump(values, sort_keys=False)
