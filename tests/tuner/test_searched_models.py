"""Weight precision, prompt truncation and the model itself, searched like any knob."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeTestbed, cases, make_spec
from tests.tuner.test_study import Log
from tuner.plan import make_plan
from tuner.recommend import recommend
from tuner.results import StudyResults, load_results
from tuner.scored import config_of
from tuner.serving.adapters import quality_key
from tuner.spec import StudySpec
from tuner.store import Store
from tuner.study import run_study

SEQUENCES = {"type": "int", "low": 8, "high": 32, "log": True}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "study.db") as store:
        yield store


def _searched(spec: StudySpec, store: Store) -> tuple[StudyResults, FakeTestbed]:
    testbed = FakeTestbed()
    run_study(spec, store, testbed, Log(), {"machine": "fake"}, False)
    return load_results(store, "fake"), testbed


def _spec(directory: Path, parameters: dict[str, Any], **changes: Any) -> StudySpec:
    budget = {"trials": 6, "startup_trials": 4, "finalists": 1, "plateau": False}
    space = {"parameters": {"max_num_seqs": SEQUENCES, **parameters}}
    return make_spec(directory, search_space=space, budget=budget, **changes)


def test_weight_precision_is_a_knob(tmp_path: Path, store: Store) -> None:
    kinds = ["auto", "int8", "int4"]
    spec = _spec(tmp_path, {"weight_dtype": {"type": "choice", "choices": kinds}})
    results, testbed = _searched(spec, store)
    assert {trial.knobs["weight_dtype"] for trial in results.trials} == set(kinds)
    assert testbed.calls[0].purpose == "reference" and testbed.calls[0].config.values["weight_dtype"] == "auto"
    lost = [trial for trial in results.trials if trial.knobs["weight_dtype"] == "int4" and trial.quality is not None]
    assert all(trial.constraints["quality:text"] > 0 for trial in lost), "each precision answers for itself"
    assert results.trials[0].knobs["weight_dtype"] == "auto"


def test_truncation_is_a_knob_and_the_reference_reads_whole_prompts(tmp_path: Path, store: Store) -> None:
    engine = {"settings": {"prompt_truncation": "keep_tail"}, "baseline": {"max_model_len": 64}}
    spec = _spec(tmp_path, {"max_model_len": {"type": "choice", "choices": [None, 64]}}, engine=engine)
    results, testbed = _searched(spec, store)
    assert testbed.calls[0].purpose == "reference" and testbed.calls[0].config.values["max_model_len"] is None
    assert results.baseline.knobs["max_model_len"] == 64 and results.baseline.state == "infeasible"
    whole = [trial for trial in results.trials if trial.knobs["max_model_len"] is None and trial.quality is not None]
    assert whole and all(trial.constraints["quality:text"] <= 0 for trial in whole)


def _small(directory: Path) -> Path:
    """The study's files, and a second checkpoint of the same vocabulary."""
    make_spec(directory)
    shutil.copytree(directory / "model", directory / "small", dirs_exist_ok=True)
    (directory / "small/model.safetensors").write_bytes(b"fewer")
    return directory


def test_the_model_is_a_knob(tmp_path: Path, store: Store) -> None:
    spec = _spec(_small(tmp_path), {}, models=["small"])
    results, testbed = _searched(spec, store)
    names = {Path(trial.knobs["model"]).name for trial in results.trials}
    assert names == {"model", "small"} and Path(results.baseline.knobs["model"]).name == "model"
    reference = testbed.calls[0]
    assert reference.purpose == "reference" and Path(reference.config.values["model"]).name == "model"
    best = recommend(results).trial
    assert best is not None and Path(best.knobs["model"]).name == "small", "three times as fast within the floor"
    assert best.quality is not None and best.quality.slices[-1].nll_increase == pytest.approx(0.003, abs=1e-6)
    assert config_of(spec, best.knobs).values["model"] == str(tmp_path / "small")
    assert set(results.provenance["files"]) >= {"model", "models.0"}


def test_a_model_answers_for_itself(tmp_path: Path) -> None:
    plan = make_plan(_spec(_small(tmp_path), {}, models=["small"]))
    one, other = (plan.config({**plan.baseline, "model": str(tmp_path / name)}) for name in ("model", "small"))
    assert quality_key(one) != quality_key(other)
    assert "model=" not in quality_key(make_plan(_spec(tmp_path, {})).reference), "keys of other studies stay"


BAD = [
    ("no checkpoint", {"models": ["nowhere"]}, "nowhere: expected a checkpoint directory with config.json"),
    ("the model itself", {"models": ["model"]}, "named twice"),
    ("another vocabulary", {"models": ["larger"]}, "larger: has another vocabulary than"),
    ("another tokenizer", {"models": ["small"]}, "tokenizer.json: differs from"),
    ("in the space", {"search_space": {"parameters": {"model": {"type": "choice", "choices": ["a"]}}}},
     "search_space: model: expected the checkpoints under models:"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), cases(BAD))
def test_bad_models_are_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    _small(tmp_path)
    shutil.copytree(tmp_path / "small", tmp_path / "larger")
    (tmp_path / "larger/config.json").write_text('{"vocab_size": 101, "max_position_embeddings": 512}')
    for name in ("model", "small"):
        (tmp_path / name / "tokenizer.json").write_text(f'{{"of": "{name}"}}')
    with pytest.raises(ValueError, match=message) as caught:
        make_plan(make_spec(tmp_path, **changes))
    assert "\n" not in str(caught.value)
