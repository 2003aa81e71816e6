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
from hand_made_study import hostile_study, recommendation, study

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
            if attributes.get("type") == "application/json":
                yield json.loads(content)


def page(tmp_path: Path, results: StudyResults, chosen: Recommendation) -> Page:
    write_report(results, chosen, tmp_path / "runs/demo/report.html")
    return Page((tmp_path / "runs/demo/report.html").read_text(encoding="utf-8"))


def test_one_file_that_names_no_other(tmp_path: Path, results: StudyResults) -> None:
    found = page(tmp_path, results, recommendation(results))
    for tag, attributes in found.tags:
        assert "src" not in attributes and "srcset" not in attributes, tag
        assert (attributes.get("href") or "data:").startswith("data:"), tag
    assert [bool(a) for a, content in found.scripts if "plotly.js v" in content] == [False], "plotly is inlined once"


def test_sections_come_in_the_order_of_a_decision(tmp_path: Path, results: StudyResults) -> None:
    text = page(tmp_path, results, recommendation(results)).text
    order = ["Deploy trial 9", "Baseline against recommended", "Goodput against quality", "SLO compliance",
             "Quality by slice", "Knobs", "Course of the study", "Trials", "What was measured where",
             "Doubts"]  # fmt: skip
    places = [text.index(f"{heading}") for heading in order[:1]] + [text.index(f"\n{h}\n") for h in order[1:]]
    assert places == sorted(places)


def test_every_figure_is_valid_json_with_a_text_alternative(tmp_path: Path, results: StudyResults) -> None:
    found = page(tmp_path, results, recommendation(results))
    figures = list(found.figures())
    labels = [a["aria-label"] for _, a in found.tags if a.get("role") == "img"]
    assert len(figures) == len(labels) == 4 + 6
    assert all(figure["data"] for figure in figures) and all(labels)


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
    assert text.index("Nothing is feasible.") < text.index("Baseline against recommended")
    assert "the binding constraint is slo:chat, missed by 0.210 in the closest trial, 3" in text


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
    found = page(tmp_path, hostile, recommendation(hostile))
    known = {"html", "head", "meta", "title", "link", "style", "body", "main", "header", "p", "strong", "h1", "h2",
             "ul", "li", "dl", "dt", "dd", "div", "section", "table", "thead", "tbody", "tr", "th", "td", "small",
             "figure", "figcaption", "script", "code", "button", "span"}  # fmt: skip
    assert {tag for tag, _ in found.tags} <= known
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert len([1 for attributes, _ in found.scripts if not attributes]) == 2
    for payload in payloads:
        assert payload in found.text, payload
    for figure in found.figures():
        assert not re.search(r"<(?!/?b>|br>)", json.dumps(figure)), "Plotly would read this as a tag"
