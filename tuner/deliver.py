"""What a run hands over: report, recommended configuration, deploy files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reports.evidence import NOTHING, Evidence
from reports.page import write_report
from tuner.recommend import Recommendation
from tuner.results import StudyResults, TrialResult
from tuner.retune import POINTS, RetuneWhen, conditions, retune_when
from tuner.scored import config_of, slo_of
from tuner.serving.adapters import engine_text
from tuner.serving.export import alerts
from tuner.serving.export.files import ENGINES, Provenance, export, served_by
from tuner.serving.export.guard_rails import Held
from tuner.traffic.profile import SERIES, LengthCounts, drift_limit
from tuner.worth import proven, replicas

ALERTS = "alerts.yaml"
FRONT = "front"
"""Directory of an interrupted run: a configuration for each trial of the front."""
FILES = ("report.html", "recommended.yaml", *(f"deploy/{file}" for file in (*ENGINES.values(), ALERTS)))


def deliver(results: StudyResults, found: Recommendation, directory: Path, evidence: Evidence = NOTHING) -> list[Path]:
    """Write all files into the run's directory and return their paths; what an earlier call left is gone. evidence:
    raw records, for the figures of the report that need them.

    Without a recommendation only the report is written. One that is not deployable gets no deploy files, and its
    recommended.yaml says so in its header.
    """
    for name in FILES:
        (directory / name).unlink(missing_ok=True)
    forget_front(directory)
    report = directory / "report.html"
    write_report(results, found, report, evidence)
    if found.trial is None:
        return [report]
    recommended = directory / "recommended.yaml"
    recommended.write_text(_recommended(results, found), encoding="utf-8")
    if refusal(found) is not None:
        return [report, recommended]
    deploy = [path for target in ENGINES for path in export_to(target, results, found, directory / "deploy")]
    _write_alerts(results, found, directory / "deploy", tuple(alerts.ENGINES))  # of both, where the single ones had one
    return [report, recommended, *dict.fromkeys(deploy)]


def deliver_front(
    results: StudyResults, found: Recommendation, directory: Path, evidence: Evidence = NOTHING
) -> list[Path]:
    """Write what a study that was interrupted has found so far: the report, and each trial of the front as a
    configuration for `python -m engine --config`. Return the paths; what an earlier interruption left is gone."""
    forget_front(directory)
    report = directory / "report.html"
    write_report(results, found, report, evidence)
    (directory / FRONT).mkdir(exist_ok=True)
    return [report, *(_write_front_trial(results, trial, directory / FRONT) for trial in results.front)]


def forget_front(directory: Path) -> None:
    """Delete the front of an interruption that is over."""
    for path in (directory / FRONT).glob("trial-*.yaml"):
        path.unlink()


def _write_front_trial(results: StudyResults, trial: TrialResult, directory: Path) -> Path:
    assert trial.objectives is not None
    goodput, quality, tail = trial.objectives
    head = (
        f"# study {results.spec.name}, trial {trial.number}: on the front when the study was interrupted\n"
        f"# {goodput:.2f} good requests/s at {trial.time_scale or results.time_scale:.3g}x the recorded rate, quality "
        f"{quality:.4f}, tail latency {tail:.4f} s\n"
        "# Not measured again after the search, on held-out traffic neither.\n"
    )
    path = directory / f"trial-{trial.number}.yaml"
    path.write_text(f"{head}\n{engine_text(config_of(results.spec, trial.knobs))}", encoding="utf-8")
    return path


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
    engine: str | None = None,
    image: str | None = None,
    remarks: tuple[str, ...] = (),
    force: bool = False,
) -> list[Path]:
    """Write the recommended configuration in the words of `target`, and for an engine whose metrics are known the
    alerts for when to tune again. engine, image: what a manifest runs. remarks: for the files' headers. force: also
    one that is not deployable, without alerts.

    Raises ValueError for an unknown target, and for a recommendation that is not deployable.
    """
    if (why := refusal(found)) is not None and not (force and found.trial is not None):
        raise ValueError(why)
    assert found.trial is not None
    today = datetime.now(UTC).date().isoformat()
    provenance = Provenance(results.spec.name, found.trial.number, today, (*remarks, *_machine(results.environment)))
    config = config_of(results.spec, found.trial.knobs)
    when = retune_when(results, found)
    paths = export(
        target,
        config,
        out=out,
        model_name=results.spec.model.name,
        provenance=provenance,
        engine=engine,
        image=image,
        held=None if when is None else _held(results, when),
        on_gpu=bool(results.environment.get("gpus")),
        replicas=replicas(proven(results, found.trial).time_scale) if found.deployable else 1,
    )
    served = served_by(target, engine)
    alerted = served in alerts.ENGINES and found.deployable
    return [*paths, _write_alerts(results, found, out, (served,))] if alerted else paths


def _write_alerts(results: StudyResults, found: Recommendation, out: Path, engines: Sequence[str]) -> Path:
    assert found.trial is not None and (when := retune_when(results, found)) is not None
    fingerprint = config_of(results.spec, found.trial.knobs).fingerprint
    labels = {"study": results.spec.name, "trial": str(found.trial.number), "configuration": fingerprint}
    path = out / ALERTS
    path.write_text(alerts.alerts(_limits(when), engines, labels), encoding="utf-8")
    return path


def _limits(when: RetuneWhen) -> alerts.Limits:
    """The thresholds as far as an engine's own metrics can be held against them."""
    prompt, output = (None, None) if when.profile is None else (when.profile.prompt, when.profile.output)
    return alerts.Limits(
        held_rate=when.held_rate,
        prompt=_bins(prompt),
        output=_bins(output),
        least_acceptance=None if when.acceptance is None else max(when.acceptance - POINTS, 0.0),
        hits=None if when.hits is None else (when.hits, POINTS),
    )


def _machine(environment: Mapping[str, Any]) -> tuple[str, ...]:
    """What it was measured on, in one line; nothing where that is not known."""
    if gpus := environment.get("gpus"):
        return (f"Measured on {'; '.join(gpus)}.",)
    cpu, cores = environment.get("cpu"), environment.get("cpu_cores")
    return (f"Measured without a GPU, on {cores} cores of {cpu}.",) if cpu and cores else ()


def _held(results: StudyResults, when: RetuneWhen) -> Held:
    """What guard rails follow from. A bound that grows with the prompt is that of a prompt of middle length."""
    edges = () if when.profile is None else when.profile.prompt.edges
    prompt = edges[len(edges) // 2] if edges else None
    bounds = {name: slo_of(bounds).ttft_bound(prompt) for name, bounds in results.spec.slos.items()}
    patience = max(((bound, name) for name, bound in bounds.items() if bound), default=None)
    return Held(
        rate=when.held_rate,
        patience=None if patience is None else (patience[1], patience[0]),
        least_acceptance=_limits(when).least_acceptance,
    )


def _bins(counts: LengthCounts | None) -> alerts.LengthBins | None:
    if counts is None:
        return None
    return alerts.LengthBins(SERIES, counts.series, drift_limit(counts.series, alerts.FEWEST_REQUESTS))


def _recommended(results: StudyResults, found: Recommendation) -> str:
    """A configuration that `python -m engine --config` takes, headed by why it was chosen."""
    assert found.trial is not None
    when = retune_when(results, found)
    words = [f"study {results.spec.name}, trial {found.trial.number}", refusal(found) or found.verdict, *found.reasons]
    words += [f"Tune again when {words}." for words in (conditions(when) if when is not None else ())]
    if hashes := results.provenance.get("files"):
        words.append(f"SHA-256 begins: {', '.join(f'{name} {begins}' for name, begins in hashes.items())}.")
    head = "".join(f"# {line}\n" for text in words for line in text.splitlines())
    return head + "\n" + engine_text(config_of(results.spec, found.trial.knobs))
