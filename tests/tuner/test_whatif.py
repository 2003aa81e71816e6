"""`tune whatif`: stored records scored by other SLOs and floors, beside what was recommended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.fakes import cases
from tests.tuner.builders import answered, failed, forced, measurement, recall
from tuner.cli.__main__ import app
from tuner.serving.config import ServingConfig
from tuner.spec import parse_spec
from tuner.store import Store

REFERENCE = (*(forced(f"f{i}", [-0.5, -0.5]) for i in range(10)), *(recall(f"r{i}", True) for i in range(60)))
FORGETFUL = (*REFERENCE[:10], *(recall(f"r{i}", i % 6 > 0) for i in range(60)))
VALUES: dict[str, Any] = {
    "name": "s", "model": "m", "traffic": {"trace": "t", "time_scale": "auto"},
    "slos": {"chat": {"ttft": 1.0, "attainment": 0.9}}, "quality": {"probes": "p"}, "search_space": {},
    "tail": {"slo_class": "chat"},
}  # fmt: skip
# trial -> share of quick answers (0.2 s; the others 0.8 s), probes, why it stopped
TRIALS: list[tuple[float, Any, str | None]] = [
    (0.0, REFERENCE, "slo_unreachable"),
    (0.5, REFERENCE, None),
    (0.95, FORGETFUL, None),
    (0.9, REFERENCE, None),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose baseline was hopeless; trial 1 holds, trial 2 forgets, trial 3 is the quickest that forgets nothing
    and loses a request that trial 1 does not."""
    directory = tmp_path_factory.mktemp("run")
    spec = parse_spec(VALUES, source="test", base=Path("/"))
    with Store(directory / "study.db") as store:
        store.create_study("s", spec.model_dump_json(), "hash", {"reference_key": "key"}, time_scale=2.0)
        store.save_reference("key", REFERENCE)
        study = optuna.create_study(
            study_name="s", storage=store.optuna_storage(), directions=["maximize"] * 3, load_if_exists=True
        )
        for number, (quick, probes, stopped) in enumerate(TRIALS):
            assert study.ask().number == number
            records = [answered(0.2 if i < quick * 40 else 0.8, name=f"c{i}") for i in range(40)]
            if stopped:
                records, probes = [failed("stopped", name=f"c{i}") for i in range(40)], ()
            if number == 3:
                records[-1] = failed(name="c39")
            config = ServingConfig("bundled", {"model": "m"}, {"max_num_seqs": number})
            purpose = "trial" if number else "baseline"
            store.save_measurement(
                "s", number, measurement(records, probes, config=config, purpose=purpose, stopped=stopped)
            )
    return directory


def _whatif(run: Path, changed: Any, *args: str | Path) -> Result:
    path = run / "new.yaml"
    path.write_text(changed if isinstance(changed, str) else yaml.safe_dump(changed))
    return CliRunner().invoke(app, ["whatif", str(run), "--slo", str(path), *map(str, args)])


def _found(run: Path, changed: Any, status: int = 0) -> dict[str, Any]:
    result = _whatif(run, changed, "--json")
    assert result.exit_code == status, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_tighter_bound_moves_the_recommendation(run: Path) -> None:
    found = _found(run, {"slos": {"chat": {"ttft": 0.5}}})
    assert found["before"]["trial"] == 1 and found["after"]["trial"] == 3 and not found["same"]
    assert found["changes"] == {"slos.chat.ttft": {"before": 1.0, "after": 0.5}}, "attainment stays as it was"
    assert not found["old_recommendation_holds"]
    assert found["old_recommendation_misses"]["slo:chat"] == pytest.approx(0.470, abs=1e-3), "ln(0.8 / 0.5)"
    assert found["constraints"]["slo:chat"] == {"missed_before": 1, "missed_after": 2, "measured": 4}
    assert found["constraints"]["quality:facts"] == {"missed_before": 1, "missed_after": 1, "measured": 3}
    assert found["after"]["goodput"]["value"] == 3.6
    text = _whatif(run, {"slos": {"chat": {"ttft": 0.5}}}).stdout
    assert "trial 1, no longer holds: it misses slo:chat by 0.470" in text
    assert "slos.chat.ttft: 1 -> 0.5" in text


def test_it_says_what_scoring_again_cannot_know(run: Path) -> None:
    unknown = " ".join(_found(run, {"slos": {"chat": {"ttft": 2.0}}})["unknown"])
    assert "1 of 4 replays ended early because the old SLOs were out of reach" in unknown
    assert "from 2 times the recorded rate, were found by the old SLOs" in unknown
    assert "Trial 1 has not held when measured again" in unknown
    assert _found(run, {"cost": {"price_per_hour": 2.0}})["unknown"] == [], "a price changes no ranking by goodput"


def test_a_lower_floor_lets_more_in_and_a_null_takes_a_bound_away(run: Path) -> None:
    changed = {"quality": {"floors": {"facts": {"min_recall": 0.6}}}, "slos": {"chat": {"tpot": None}}}
    found = _found(run, changed)
    assert found["constraints"]["quality:facts"]["missed_after"] == 0
    assert set(found["changes"]) == {f"quality.floors.facts.{key}" for key in ("max_nll_increase", "min_recall")}


def test_nothing_left_to_deploy(run: Path) -> None:
    found = _found(run, {"slos": {"chat": {"ttft": 0.1}}}, status=3)
    assert found["after"]["trial"] is None and found["after"]["closest_trial"] == 2
    assert found["after"]["binding_constraint"]["name"] == "slo:chat"


def test_a_whole_study_file_counts_by_the_sections_that_score(run: Path) -> None:
    changed = VALUES | {"slos": {"chat": {"ttft": 0.5}}, "model": "another", "seed": 9}
    found = _found(run, changed, status=3)
    assert set(found["changes"]) == {"slos.chat.ttft", "slos.chat.attainment"}, "a study file's classes are whole"


def test_the_report_is_of_the_study_as_scored_now(run: Path) -> None:
    done = _whatif(run, {"slos": {"chat": {"ttft": 0.5}}}, "--report", run / "new.html")
    assert done.exit_code == 0 and done.stdout.endswith(f"wrote {run / 'new.html'}\n")
    assert "Deploy trial 3" in (run / "new.html").read_text()


BAD = [
    ("an unknown section", {"slso": {}}, "slso: unknown; did you mean slos?"),
    ("an unknown class", {"slos": {"caht": {"ttft": 1}}}, "slos.caht: unknown; did you mean chat?"),
    ("an unknown bound", {"slos": {"chat": {"tfft": 1}}}, "slos.chat.tfft: unknown key; did you mean ttft?"),
    ("an unknown slice", {"quality": {"floors": {"fact": {}}}}, "quality.floors.fact: unknown; did you mean facts?"),
    ("probes cannot change", {"quality": {"probes": "x"}}, "quality.probes: unknown; scoring again can change"),
    ("a class without its SLO", {"slos": {"chat": None}}, "slos"),
    ("a study file whose class is gone", VALUES | {"slos": {"docs": {"e2e": 1}}, "tail": {"slo_class": "docs"}},
     "SLO class 'chat' is not among slos: docs"),
    ("a section that is no mapping", {"slos": [1]}, "slos: expected a mapping, found a list"),
    ("a half study file", {"slos": {"chat": {"ttft": 1}}, "model": "m"}, "name: Field required"),
    ("no mapping", "- 1", "expected a mapping, found a list"),
    ("not YAML", "a: [", "not YAML"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "message"), cases(BAD))
def test_bad_input_is_one_line(run: Path, changed: Any, message: str) -> None:
    result = _whatif(run, changed)
    assert result.exit_code == 2 and result.stdout == ""
    assert message in result.stderr and str(run / "new.yaml") in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_missing_file(run: Path) -> None:
    result = CliRunner().invoke(app, ["whatif", str(run), "--slo", str(run / "no.yaml")])
    assert result.exit_code == 2 and "no.yaml: cannot be read" in result.stderr


def test_recommend_tells_a_script_the_same(run: Path) -> None:
    told = CliRunner().invoke(app, ["recommend", str(run), "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["reasons"] and found["tune_again_when"][0].startswith("the rate stays above")
    same = _found(run, {"cost": {"price_per_hour": 2.0}})["before"]
    assert {key: found[key] for key in same} == same and found["trial"] == 1
