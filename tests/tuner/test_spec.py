"""The study file: relative paths, defaults, mistakes in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes import cases, write_study
from tuner.spec import load_spec, parse_spec

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "study.yaml"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    values = write_study(tmp_path, draft_model="draft", search_space="../spaces/engine.yaml")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    spec = load_spec(tmp_path / "study.yaml")
    assert spec.model == tmp_path / "model"
    assert spec.draft_model == tmp_path / "draft"
    assert spec.traffic.trace == tmp_path / "trace.jsonl"
    assert spec.quality.probes == tmp_path / "probes.jsonl"
    assert spec.search_space == tmp_path.parent / "spaces" / "engine.yaml"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    spec = parse_spec(write_study(tmp_path), "study.yaml", tmp_path)
    path = tmp_path / "copy" / "study.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))
    assert load_spec(path) == spec


def test_the_demo_is_a_study() -> None:
    spec = load_spec(DEMO)
    assert spec.budget.trials >= 24
    assert set(spec.slos) == {"chat", "docs"}


MISTAKES = [
    ("an unknown key", {"modell": "x"}, "study.yaml: modell: unknown key; did you mean model?"),
    ("an unknown key deeper", {"budget": {"trails": 3}}, "budget.trails: unknown key; did you mean trials?"),
    ("an unknown bound", {"slos": {"chat": {"tft": 1}}}, "slos.chat.tft: unknown key; did you mean ttft?"),
    ("no bound at all", {"slos": {"chat": {"attainment": 0.9}}}, "expected at least one bound of ttft, tpot, itl, e2e"),
    (
        "fluidity without deadlines",
        {"slos": {"chat": {"ttft": 1, "fluidity": 0.9}}},
        "slos.chat: fluidity needs ttft and tpot",
    ),
    ("a quantile of no gap", {"slos": {"chat": {"ttft": 1, "itl_quantile": 0.9}}}, "itl_quantile needs itl"),
    ("a price of nothing", {"cost": {"price_per_hour": 0}}, "cost.price_per_hour: Input should be greater than 0"),
    ("no price", {"cost": {"devices": 8}}, "cost.price_per_hour: Field required"),
    ("a bound of zero", {"slos": {"chat": {"ttft": 0}}}, "slos.chat.ttft: Input should be greater than 0 (given: 0)"),
    ("a text for a number", {"seed": "many"}, "seed: Input should be a valid integer"),
    ("a tail of no class", {"tail": {"slo_class": "docs"}}, "tail.slo_class: 'docs' is not among slos: chat"),
    ("a name that is a path", {"name": "../up"}, "name: "),
    ("another engine", {"engine": {"name": "other"}}, "engine.name: "),
    ("a tail misspelt", {"tail": {"slo_class": "cht"}}, "is not among slos: chat; did you mean chat?"),
    (
        "a percentile as a share",
        {"tail": {"slo_class": "chat", "percentile": 0.95}},
        "tail.percentile: Input should",
    ),
    (
        "a load in words",
        {"traffic": {"trace": "t", "time_scale": "fast"}},
        "expected auto or a number above 0, given",
    ),
    ("a truth for a number", {"budget": {"trials": True}}, "budget.trials: expected no true; YAML reads yes, no, on"),
    ("a number for a path", {"model": 3}, "model: expected a path (given: 3)"),
    ("a list for a search space", {"search_space": [1]}, "search_space: expected a file, or parameters: in place, giv"),
    ("a number for a section", {"budget": 3}, "budget: expected a mapping (given: 3)"),
    ("a text for a list", {"models": "m"}, "models: expected a list (given: 'm')"),
    ("a value that is long", {"models": "m" * 999}, "mmm…)"),
]


@pytest.mark.parametrize(("change", "message"), cases(MISTAKES))
def test_mistakes_are_told_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_spec(write_study(tmp_path) | change, "study.yaml", tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).startswith("study.yaml: ") and "\n" not in str(caught.value)


UNREADABLE = [
    ("nothing there", None, "cannot be read"),
    ("no YAML", "name: [", "not YAML"),
    ("a list", "- a", "expected a mapping, found a list"),
    ("empty", "", "expected a mapping, found nothing"),
]


@pytest.mark.parametrize(("text", "message"), cases(UNREADABLE))
def test_a_file_that_is_no_study(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_spec(path)
    assert str(path) in str(caught.value)
