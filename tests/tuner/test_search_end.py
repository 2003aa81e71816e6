"""Why a search ended: kept with the study, and told wherever the study is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.fakes import FakeTestbed, cases, make_spec
from tests.tuner.test_study import Log
from tuner.cli.__main__ import app
from tuner.errors import LaunchError
from tuner.results import load_results
from tuner.spec import StudySpec
from tuner.stopping import WORDS
from tuner.store import Store
from tuner.study import run_study

FEW = {"trials": 3, "startup_trials": 2, "finalists": 0, "examine": False}
FLAT = {
    "search_space": {"parameters": {"max_num_seqs": {"type": "int", "low": 18, "high": 64}}},
    "engine": {"baseline": {"max_num_seqs": 18}},
    "traffic": {"trace": "trace.jsonl", "tune_window": [0, 4], "time_scale": 0.5},
}
"""Every configuration holds the one load."""


def broken(config: Any, purpose: str) -> Exception | None:
    return LaunchError("no port") if purpose == "trial" else None


ENDS = [
    ("the trials are spent", {"budget": FEW}, {}, "trials"),
    ("the seconds are spent", {"budget": FEW | {"trials": 40, "seconds": 1e-6}}, {}, "seconds"),
    ("nothing better is found or hoped for", {"budget": FEW | {"trials": 30}, **FLAT}, {}, "plateau"),
    ("nothing comes up", {"budget": FEW | {"trials": 9}}, {"fault": broken}, "broken"),
    ("the user stops it", {"budget": FEW}, {"stop_at": "trial 2 (2/3)"}, "interrupted"),
    ("the user stops it before the first trial", {"budget": FEW}, {"stop_at": "baseline"}, "interrupted"),
    ("the user stops it before the search", {"budget": FEW}, {"stop_at": "reference"}, None),
    ("the user stops the finals", {"budget": FEW}, {"stop_at": "recorded rate of trial 0"}, "trials"),
]


def ended(spec: StudySpec, directory: Path, fault: Callable[..., Any] | None = None, stop_at: str = "") -> None:
    with Store(directory / "study.db") as store:
        testbed = FakeTestbed() if fault is None else FakeTestbed(fault)
        try:
            run_study(spec, store, testbed, Log(stop_at), {"machine": "fake"}, resume=True)
        except (KeyboardInterrupt, LaunchError):
            return


def status(directory: Path) -> dict[str, Any]:
    (found,) = json.loads(CliRunner().invoke(app, ["status", str(directory), "--json"]).stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(("changes", "how", "why"), cases(ENDS))
def test_the_end_of_the_search_is_kept(
    tmp_path: Path, changes: dict[str, Any], how: dict[str, Any], why: str | None
) -> None:
    ended(make_spec(tmp_path, **changes), tmp_path, **how)
    assert status(tmp_path)["search_end"] == why


def test_every_reader_is_told(tmp_path: Path) -> None:
    ended(make_spec(tmp_path, budget=FEW), tmp_path)
    runner = CliRunner()
    assert json.loads(runner.invoke(app, ["recommend", str(tmp_path), "--json"]).stdout)["search_end"] == "trials"
    words = f"The search ended: {WORDS['trials']}."
    assert words in runner.invoke(app, ["recommend", str(tmp_path)]).stdout
    assert runner.invoke(app, ["report", str(tmp_path)]).exit_code == 0
    assert words in (tmp_path / "report.html").read_text()
    assert WORDS["trials"] in runner.invoke(app, ["status", str(tmp_path)]).stdout
    with Store(tmp_path / "study.db") as store:
        storage = store.optuna_storage()
        storage.set_study_user_attr(storage.get_study_id_from_name("fake"), "search_end", "of a newer servetune")
        assert load_results(store, "fake").search_end is None


def test_more_budget_makes_it_another_end(tmp_path: Path) -> None:
    ended(make_spec(tmp_path, budget=FEW), tmp_path)
    more = make_spec(tmp_path, budget=FEW | {"trials": 5})
    ended(more, tmp_path, stop_at="trial 4 (4/5)")
    assert status(tmp_path)["search_end"] == "interrupted"
    ended(more, tmp_path)
    assert status(tmp_path)["search_end"] == "trials"


def test_a_search_that_goes_on_has_not_ended(tmp_path: Path) -> None:
    seen: list[tuple[str, str | None]] = []

    def look(config: Any, purpose: str) -> Exception | None:
        if purpose in ("trial", "recorded_rate"):
            found = status(tmp_path)
            seen.append((found["phase"], found["search_end"]))
        return None

    ended(make_spec(tmp_path, budget=FEW | {"trials": 1}), tmp_path, fault=look)
    assert (seen[0], seen[-1]) == (("search", None), ("finalists", "trials"))
