"""`tune report --csv`: every figure's table, tidy, and harmless in a spreadsheet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hand_made_study import evidence, recommendation, study

from reports.evidence import NOTHING
from reports.tables import tables, write_tables
from tests.fakes import cases
from tuner.recommend import recommend
from tuner.results import StudyResults


def test_one_row_a_trial_with_intervals_and_knobs_in_columns(results: StudyResults, tmp_path: Path) -> None:
    paths = write_tables(tables(results, recommendation(results), evidence(results)), tmp_path / "csv")
    read = {path.stem: pd.read_csv(path) for path in paths}
    trials = read["trials"].set_index("trial")
    assert list(trials.index) == list(range(16))
    assert trials.loc[9, ["goodput", "goodput_low", "goodput_high"]].tolist() == pytest.approx([5.6, 5.376, 5.768])
    assert trials.loc[9, "knobs.kv_cache_dtype"] == "int8" and trials.loc[9, "role"] == "recommended"
    assert pd.isna(trials.loc[2, "goodput"]) and trials.loc[2, "reason"] == "out_of_memory"
    assert (trials["state"] == "feasible").sum() == 6
    slo = read["slo_compliance"]
    assert len(slo) == slo.groupby(["group", "name", "condition", "role"]).ngroups == 24
    assert read["doubts"].loc[0, "trials"] == "0 9"
    effects = read["knob_effects"]
    assert (effects["goodput_low"] < effects["goodput_high"]).all() and effects["knob"].nunique() == 6
    assert all(len(table) for table in read.values()), "a table without a row"


def test_a_study_of_which_nothing_was_measured_has_tables_with_headings(tmp_path: Path) -> None:
    failed = study(trials=(replace(study().trials[2], number=0),), validations=())
    for path in write_tables(tables(failed, recommend(failed), NOTHING), tmp_path):
        assert len(pd.read_csv(path).columns) > 1, path


FORMULAS = [
    ("a formula", "=HYPERLINK(1)", "'=HYPERLINK(1)"),
    ("a sum", "+1+cmd", "'+1+cmd"),
    ("a difference", "-2+3", "'-2+3"),
    ("an old macro", "@SUM(A1)", "'@SUM(A1)"),
    ("a tab before it", "\t=1", "'\t=1"),
    ("a word", "chat", "chat"),
]


@pytest.mark.parametrize(("name", "expected"), cases(FORMULAS))
def test_names_are_no_formulas(name: str, expected: str, results: StudyResults, tmp_path: Path) -> None:
    trials = tuple(replace(t, reason=name, knobs={name: -1}) for t in results.trials)
    write_tables(tables(study(trials=trials), recommendation(results), NOTHING), tmp_path)
    read = pd.read_csv(tmp_path / "trials.csv")
    assert set(read["reason"]) == {expected}
    assert set(read[f"knobs.{name}"]) == {-1}, "numbers stay numbers"


def test_the_documentation_lists_every_table(results: StudyResults) -> None:
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    listed = [line.split("`")[1] for line in page.split("## The tables")[1].splitlines() if line.startswith("| `")]
    assert sorted(listed) == sorted(tables(results, recommendation(results), NOTHING))
