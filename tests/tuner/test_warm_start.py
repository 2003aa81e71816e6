"""A study that begins with what an earlier one recommended, through the front door."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.tuner.test_cli import study_file, tune
from tuner.recommend import recommend
from tuner.results import load_results
from tuner.store import Store


def second(directory: Path, **changes: object) -> Path:
    """Another study of the same model, beside the first."""
    path = directory / "second.yaml"
    values = yaml.safe_load(study_file(directory).read_text()) | {"name": "second"} | changes
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("warm")
    assert tune("run", study_file(directory), "--out", directory / "runs").exit_code in (0, 3)
    return directory


def test_it_measures_first_what_was_recommended_and_is_offered(first: Path) -> None:
    file = second(first)
    offered = tune("run", file, "--out", first / "runs")
    assert f"--warm-start {first / 'runs' / 'fake'} begins there" in offered.stderr
    warm = tune("run", file, "--out", first / "runs", "--fresh", "--warm-start", first / "runs" / "fake")
    assert "--warm-start" not in warm.stderr
    with Store(first / "runs/fake/study.db", create=False) as store:
        earlier = load_results(store, "fake")
    with Store(first / "runs/second/study.db", create=False) as store:
        later = load_results(store, "second")
    found = recommend(earlier)
    ranked = [dict(trial.knobs) for trial in (found.trial, *found.runners_up) if trial is not None and trial.number]
    assert ranked
    assert [dict(trial.knobs) for trial in later.trials[1 : 1 + len(ranked)]] == ranked


def test_a_narrower_space_takes_over_what_it_has(first: Path) -> None:
    space = {"parameters": {"max_num_seqs": {"type": "int", "low": 1, "high": 64, "log": True}}}
    done = tune(
        "run", second(first, search_space=space), "--out", first / "narrow", "--warm-start", first / "runs/fake"
    )
    assert done.exit_code in (0, 3), done.output


def test_another_model_is_refused_in_one_line(first: Path, tmp_path: Path) -> None:
    other = study_file(tmp_path)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"others")
    done = tune("run", other, "--out", tmp_path / "runs", "--warm-start", first / "runs" / "fake")
    assert done.exit_code == 2 and "it tuned another model" in done.stderr
    assert not (tmp_path / "runs" / "fake").exists()
    assert "another model" not in tune("run", other, "--out", tmp_path / "runs").stderr


def test_a_run_that_is_none_is_refused_in_one_line(first: Path) -> None:
    done = tune("run", second(first), "--out", first / "none", "--warm-start", first / "model")
    assert done.exit_code == 2 and "model: no run here (study.db is missing)" in done.stderr
