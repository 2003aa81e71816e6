"""The report: one HTML file that needs no network, and runs nothing but its own two scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from reports import comparison, knob_effects, pareto_front, quality_slices, slo_compliance, study_history, text
from reports import trial_table as trials
from tuner.recommend import Recommendation
from tuner.results import StudyResults

_HERE = Path(__file__).parent
STATES = ("feasible", "infeasible", "failed", "running")


def write_report(results: StudyResults, recommendation: Recommendation, path: Path) -> None:
    """Write the report of a study to `path`, replacing it. Raises OSError when it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_render(results, recommendation), encoding="utf-8")


def _render(results: StudyResults, recommendation: Recommendation) -> str:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=text.number, plain=text.plain, seconds=text.seconds, percent=text.percent,
        percent_interval=text.percent_interval, interval=text.interval, knob_value=text.knob_value,
        figure_json=_figure_json,
    )  # fmt: skip
    scripts = {"plotly_js": get_plotlyjs(), "page_js": (_HERE / "page.js").read_text(encoding="utf-8")}
    return environment.get_template("page.html.jinja").render(
        **_content(results, recommendation),
        **{name: Markup(source) for name, source in scripts.items()},
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script_hashes=[_hash(source) for source in scripts.values()],
    )


def _hash(source: str) -> str:
    """The source expression that lets a Content-Security-Policy run this inline script and no other."""
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _figure_json(figure: go.Figure) -> Markup:
    """Safe inside a script element: without "<" nothing can close it."""
    json = figure.to_json()
    assert json is not None
    return Markup(json.replace("<", "\\u003c"))


def _content(results: StudyResults, recommendation: Recommendation) -> dict[str, Any]:
    number = None if recommendation.trial is None else recommendation.trial.number
    fronts = pareto_front.info(results, number)
    slos = slo_compliance.info(results, number)
    slices = quality_slices.info(results, number)
    history = study_history.info(results)
    return {
        "results": results,
        "recommendation": recommendation,
        "chosen": number,
        "comparison": comparison.info(results, number),
        "tail": tail_name(results),
        "pareto": (fronts, pareto_front.plot(fronts, tail_name(results))),
        "slo": (slos, slo_compliance.plot(slos)),
        "quality": (slices, quality_slices.plot(slices)),
        "quality_units": quality_slices.UNITS,
        "knobs": knob_effects.plot(knob_effects.info(results)),
        "history": (history, study_history.plot(history)),
        "reasons": study_history.reasons(results),
        "table": trials.info(results, number),
        "states": {state: sum(t.state == state for t in results.trials) for state in STATES},
        "load": load_in_words(results),
        "facts": tuple(_flat({"environment": results.environment, "provenance": results.provenance})),
        "doubts": doubts(results, number),
    }


def tail_name(results: StudyResults) -> str:
    """The tail-latency objective in words, for example "p95 TTFT, chat"."""
    tail = results.spec.tail
    return f"p{tail.percentile:g} {tail.metric.upper()}, {tail.slo_class}"


def load_in_words(results: StudyResults) -> str:
    """How fast the recorded window was replayed in the trials, and what that means for the comparison."""
    scale = results.time_scale
    missed = [name for name, value in results.baseline.constraints.items() if name.startswith("slo:") and value > 0]
    pace = "at its recorded pace" if scale == 1 else f"{text.plain(scale)} times faster than recorded"
    if missed:
        return f"Trials replayed the recorded window {pace}, past the knee of the baseline: it misses its SLOs there."
    return (
        f"Trials replayed the recorded window {pace}. The baseline meets its SLOs at that load, so no configuration "
        "can show much more goodput than the requests offered."
    )


def doubts(results: StudyResults, recommended: int | None) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Each doubt with the trials it is about; those about baseline or recommendation first."""
    found: dict[str, list[int]] = {}
    for trial in results.trials:
        for doubt in trial.doubts:
            found.setdefault(doubt, []).append(trial.number)
    matters = {results.baseline.number, recommended}
    ordered = sorted(found.items(), key=lambda item: (matters.isdisjoint(item[1]), -len(item[1])))
    return tuple((doubt, tuple(numbers)) for doubt, numbers in ordered)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
