"""The file that a person opens: offline, escaped, and plain about bad news."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hand_made_study import RECOMMENDED, evidence, hostile_evidence, hostile_study, recommendation, study

from reports.evidence import NOTHING, Evidence
from reports.page import write_report
from tuner.recommend import Recommendation, recommend
from tuner.results import StudyResults


class Page(HTMLParser):
    """Tags with attributes, visible text, and the contents of script elements."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._inside = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = attributes, before + data
        elif self._inside != "style":
            self.text += data

    def figures(self) -> Iterator[dict[str, Any]]:
        for attributes, content in self.scripts:
            if "data-plot" in attributes:
                yield json.loads(content)


def page(tmp_path: Path, results: StudyResults, chosen: Recommendation, raw: Evidence = NOTHING) -> Page:
    write_report(results, chosen, tmp_path / "runs/demo/report.html", raw)
    return Page((tmp_path / "runs/demo/report.html").read_text(encoding="utf-8"))


def test_one_file_that_names_no_other(tmp_path: Path, results: StudyResults) -> None:
    found = page(tmp_path, results, recommendation(results))
    for tag, attributes in found.tags:
        assert "src" not in attributes and "srcset" not in attributes, tag
        assert (attributes.get("href") or "data:").startswith(("data:", "#")), tag
    plotly = [attributes.get("type") for attributes, content in found.scripts if "plotly.js v" in content]
    assert plotly == ["text/plain"], "inlined once, and not run before a figure is drawn"


def test_sections_come_in_the_order_of_a_decision(tmp_path: Path, results: StudyResults) -> None:
    found = page(tmp_path, results, recommendation(results), evidence(results))
    order = ["Deploy trial 9", "How sure is it", "Baseline against recommended", "Goodput, quality and tail latency",
             "Alternatives", "SLO compliance", "Latency distributions", "Quality by slice", "What each change buys",
             "What each knob does", "Robustness", "Verified since", "Course of the study", "Trials",
             "What was measured where", "Doubts and advice"]  # fmt: skip
    places = [found.text.index(order[0])] + [found.text.index(f"\n{heading}\n") for heading in order[1:]]
    assert places == sorted(places)
    links = [a["href"] for tag, a in found.tags if tag == "a"]
    assert links == [f"#{a['id']}" for tag, a in found.tags if tag == "section"] and len(links) == 15


def test_every_figure_is_valid_json_with_a_text_alternative(tmp_path: Path, results: StudyResults) -> None:
    found = page(tmp_path, results, recommendation(results), evidence(results))
    figures = list(found.figures())
    labels = [a["aria-label"] for _, a in found.tags if a.get("role") == "img"]
    places = [a["id"] for _, a in found.tags if a.get("role") == "img"]
    assert len(figures) == len(labels) == len(set(places))
    assert {"plot-pareto", "plot-tail", "plot-slo", "plot-latency-3", "plot-quality", "plot-recall-baseline",
            "plot-speculation", "plot-knob-5", "plot-importance", "plot-changes", "plot-scenarios", "plot-history",
            "plot-timeline"} <= set(places)  # fmt: skip
    assert all(figure["data"] for figure in figures) and all(labels)


def test_every_table_sorts_and_has_as_many_cells_as_headings(tmp_path: Path, results: StudyResults) -> None:
    write_report(results, recommendation(results), tmp_path / "r.html", evidence(results))
    source = (tmp_path / "r.html").read_text(encoding="utf-8")
    tables = re.findall(r"<table class=\"sortable.*?</table>", source, flags=re.DOTALL)
    assert len(tables) > 12
    for table in tables:
        head, body = table.split("<tbody>")
        widths = {len(re.findall("<t[hd][ >]", row)) for row in body.split("<tr")[1:]}
        assert widths == {head.count("<th ")}, table[:300]


def test_the_recommended_configuration_can_be_copied_as_it_is(tmp_path: Path, results: StudyResults) -> None:
    found = page(tmp_path, results, recommendation(results))
    (known,) = [json.loads(content) for a, content in found.scripts if a.get("id") == "trial-cards"]
    cards = known["cards"]
    assert known["selected"] == [0, RECOMMENDED]
    assert [card["trial"] for card in cards] == list(range(16))
    assert [card["role"] for card in cards if card["role"]] == ["baseline", "recommended"]
    whole = f"# study demo, trial 9\n{known['settings']}{cards[9]['yaml']}"
    assert yaml.safe_load(whole) == {"model": "/studies/mini", **results.trials[9].knobs}
    assert whole in found.text
    assert cards[9]["at"] == {"goodput": 4.0, "quality": 0.9985, "tail_latency": 0.4} and cards[2]["at"] == {}


def test_policy_allows_the_two_scripts_and_no_others(tmp_path: Path, results: StudyResults) -> None:
    found = page(tmp_path, results, recommendation(results))
    (policy,) = [a["content"] for _, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == directives["connect-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/=]{44}' 'sha256-[\w+/=]{44}'", directives["script-src"])


def test_sharing_button_is_off(tmp_path: Path, results: StudyResults) -> None:
    scripts = page(tmp_path, results, recommendation(results)).scripts
    assert "showSendToCloud: false, displaylogo: false, responsive: true" in scripts[-1][1]


def test_nothing_feasible_is_said_at_the_top(tmp_path: Path, results: StudyResults) -> None:
    none = study(trials=tuple(replace(t, state="infeasible", on_front=False) for t in results.trials))
    text = page(tmp_path, none, recommendation(none, None)).text
    assert "Nothing is feasible. None of the 16 configurations" in text
    assert text.index("Nothing is feasible.") < text.index("Baseline against the closest")


def test_a_pick_that_missed_its_validation_is_flagged(tmp_path: Path, results: StudyResults) -> None:
    text = page(tmp_path, results, replace(recommendation(results), deployable=False)).text
    assert text.index("Not to be deployed as it is.") < text.index("Baseline against recommended")


ODD_STUDIES: dict[str, dict[str, Any]] = {
    "the baseline alone": {"trials": study().trials[:1], "validations": ()},
    "a failed baseline alone": {"trials": (replace(study().trials[2], number=0),), "validations": ()},
    "a trial still running": {"trials": (*study().trials, replace(study().trials[2], number=16, state="running"))},
    "nothing finished": {"trials": study().trials[:3], "environment": {}, "provenance": {}},
}


@pytest.mark.parametrize("changes", ODD_STUDIES.values(), ids=ODD_STUDIES)
def test_odd_studies_have_a_page_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    """With the recommendation that the tuner itself makes of them."""
    odd = study(**changes)
    found = page(tmp_path, odd, recommend(odd))
    assert recommend(odd).verdict in found.text


def test_the_tuners_own_recommendation_is_shown(tmp_path: Path, results: StudyResults) -> None:
    chosen = recommend(results)
    text = page(tmp_path, results, chosen).text
    for sentence in (chosen.verdict, chosen.rule, *chosen.reasons):
        assert sentence in text


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    hostile, payloads = hostile_study()
    assert len(payloads) > 200
    found = page(tmp_path, hostile, recommendation(hostile), hostile_evidence(hostile))
    known = {"html", "head", "meta", "title", "link", "style", "body", "main", "header", "p", "strong", "h1", "h2",
             "ul", "li", "dl", "dt", "dd", "div", "section", "table", "thead", "tbody", "tr", "th", "td", "small",
             "figure", "figcaption", "script", "code", "button", "nav", "ol", "a", "pre"}  # fmt: skip
    assert {tag for tag, _ in found.tags} <= known
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    kinds = [attributes.get("type") for attributes, _ in found.scripts]
    assert (kinds.count(None), kinds.count("text/plain")) == (1, 1) and set(kinds) == {
        None, "text/plain", "application/json",
    }, "the page's own, and Plotly"  # fmt: skip
    assert all((a.get("href") or "").startswith("#") for tag, a in found.tags if tag == "a")
    for payload in payloads:
        assert payload in found.text, payload
    for figure in found.figures():
        words = json.dumps(figure).replace("<extra></extra>", "")  # of our own hover templates
        assert not re.search(r"<(?!/?b>|br>)", words), "Plotly would read this as a tag"


def test_a_thousand_trials_weigh_at_most_8_mb(tmp_path: Path) -> None:
    few = study()
    trials = tuple(replace(few.trials[i % 16], number=i) if i else few.trials[0] for i in range(1000))
    write_report(replace(few, trials=trials), recommendation(few), tmp_path / "report.html", evidence(few))
    assert (tmp_path / "report.html").stat().st_size <= 8e6
