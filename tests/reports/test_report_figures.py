"""What the figures and tables of the report say, compared as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hand_made_study import RECOMMENDED, spec, study
from hypothesis import given
from hypothesis import strategies as st

from reports import comparison, doubts, knob_effects, pareto_front, quality_slices, slo_compliance, study_history, text
from reports import trial_table as trials
from reports.comparison import shown, shown_change
from reports.page import load_in_words, tail_name
from tuner.results import StudyResults


def test_pareto_rows_are_the_measured_trials(results: StudyResults) -> None:
    rows = pareto_front.info(results, RECOMMENDED)
    assert [row.trial for row in rows] == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14]
    assert {row.trial: row.role for row in rows if row.role} == {0: "baseline", 9: "recommended"}
    best = next(row for row in rows if row.trial == 9)
    assert (best.goodput, best.quality, best.tail_latency, best.state) == (5.6, 0.9985, 0.36, "feasible")
    assert best.knobs["kv_cache_dtype"] == "int8"


def test_pareto_marks_a_recommended_baseline_as_recommended(results: StudyResults) -> None:
    rows = pareto_front.info(results, 0)
    assert [row.trial for row in rows if row.role == "recommended"] == [0]
    assert not [row for row in rows if row.role == "baseline"]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), max_size=12))
def test_staircase_is_the_feasible_points_that_nothing_beats(points: list[tuple[int, int, bool]]) -> None:
    rows = [
        pareto_front.Row(i, "feasible" if ok else "infeasible", "", float(x), float(y), 0.1, False, {})
        for i, (x, y, ok) in enumerate(points)
    ]
    feasible = {(x, y) for x, y, ok in points if ok}
    unbeaten = [p for p in feasible if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in feasible)]
    assert list(pareto_front.staircase(rows)) == sorted(unbeaten)


def test_figure_tells_states_apart_by_symbol_and_colour(results: StudyResults) -> None:
    shown = pareto_front.plot(pareto_front.info(results, RECOMMENDED), "p95 TTFT, chat")
    looks = {trace.name: (trace.marker.symbol, trace.marker.color) for trace in shown.data if trace.marker.symbol}
    assert len({symbol for symbol, _ in looks.values()}) == len(looks) == 4
    assert looks["feasible"][1] != looks["infeasible"][1]
    hover = next(t for t in shown.data if t.name == "recommended").hovertext[0]
    assert "kv_window = none" in hover and "num_speculative_tokens = 3" in hover


def test_slo_rows_by_class_condition_and_role(results: StudyResults) -> None:
    rows = slo_compliance.info(results, RECOMMENDED)
    conditions = ["tuned load", "held-out traffic", "recorded rate"]
    expected = [(c, w, r) for c in ("chat", "documents") for w in conditions for r in ("baseline", "recommended")]
    assert [(row.slo_class, row.condition, row.role) for row in rows] == expected
    first = rows[0]
    assert (first.good, first.offered, first.target, first.holds) == (132, 240, 0.95, False)
    assert (first.p95_ttft, rows[1].p95_ttft, rows[1].holds) == (1.42, 0.36, True)


def test_slo_rows_name_a_load_that_is_not_the_trials(results: StudyResults) -> None:
    faster = replace(results.validations[3], time_scale=4.8)
    rows = slo_compliance.info(study(validations=(faster,)), RECOMMENDED)
    assert "held-out traffic, 4.8x" in {row.condition for row in rows}


def test_quality_rows_hold_the_bound_against_what_is_allowed(results: StudyResults) -> None:
    rows = {(row.slice, row.role): row for row in quality_slices.info(results, RECOMMENDED)}
    recall = rows["recall", "recommended"]
    assert (recall.loss, recall.bound, recall.allowed) == pytest.approx((0.006, 0.036, 0.1))
    code = rows["code", "recommended"]
    assert (code.loss, code.bound, code.allowed) == pytest.approx((0.0012, 0.0032, 0.02))
    assert code.holds and recall.holds


def test_quality_of_a_lossy_window_does_not_hold(results: StudyResults) -> None:
    rows = {(row.slice, row.role): row for row in quality_slices.info(results, 4)}
    assert not rows["recall", "recommended"].holds


def test_knob_rows_leave_out_what_never_varied(results: StudyResults) -> None:
    constant = [replace(t, knobs={**t.knobs, "kv_window": None}) for t in results.trials]
    assert "kv_window" not in {row.knob for row in knob_effects.info(study(trials=tuple(constant)))}


def test_knob_values_are_ordered_as_a_reader_expects(results: StudyResults) -> None:
    rows = knob_effects.info(results)
    chunk = list(dict.fromkeys(row.value for row in rows if row.knob == "prefill_chunk_size"))
    assert chunk == [32, 64, 96, 128, 256, None]
    assert {row.trial for row in rows if row.goodput is None} == {2, 7, 12, 15}


def test_history_counts_feasible_goodput_only(results: StudyResults) -> None:
    best = [row.best for row in study_history.info(results)]
    assert best == [None, None, None, 4.4, 4.4, 4.9, 4.9, 4.9, 5.2, *[5.6] * 7]


def test_reasons_are_grouped_most_frequent_first(results: StudyResults) -> None:
    assert [(row.reason, row.trials) for row in study_history.reasons(results)] == [
        ("out_of_memory", (2, 15)),
        ("engine_crashed", (7,)),
        ("engine_hung", (12,)),
        ("hopeless_replay", (6,)),
    ]


def test_trial_table_has_every_trial_and_sorts_by_numbers(results: StudyResults) -> None:
    table = trials.table(trials.info(results, RECOMMENDED))
    assert len(table.rows) == 16
    assert {len(cells) for _, cells in table.rows} == {len(table.columns)}
    role, cells = table.rows[9]
    by_name = dict(zip(table.columns, cells, strict=True))
    assert role == "recommended"
    assert (by_name["tail latency"].text, by_name["tail latency"].key) == ("360 ms", 0.36)
    failed = dict(zip(table.columns, table.rows[2][1], strict=True))
    assert failed["reason"].text == "out_of_memory: the engine ended with out_of_memory"
    assert failed["goodput (requests/s)"].text == "–"


def test_comparison_shows_both_with_change(results: StudyResults) -> None:
    rows = {row.metric: row for row in comparison.info(results, RECOMMENDED)}

    def told(metric: str) -> tuple[str, str, str]:
        row = rows[metric]
        return (*(shown(value, row.unit) for value in (row.baseline, row.recommended)), shown_change(row.change))

    assert told("goodput") == ("3.20 [3.07, 3.30]", "5.60 [5.38, 5.77]", "+75.0 %")
    assert told("p95 TTFT, chat") == ("1.42 s", "360 ms", "−74.6 %")
    assert told("SLO attainment, chat") == ("55.0 % [48.7, 61.3]", "97.5 % [95.5, 99.5]", "")
    assert told("quality")[1:] == ("0.9985 [0.9965, 0.9995]", "")


@pytest.mark.parametrize("number", [None, 0], ids=["abstention", "the baseline itself"])
def test_comparison_without_a_second_configuration_has_one_column(results: StudyResults, number: int | None) -> None:
    assert {row.recommended for row in comparison.info(results, number)} == {None}


def test_a_failed_baseline_leaves_its_column_empty(results: StudyResults) -> None:
    failed = replace(results.trials[2], number=0)
    rows = comparison.info(study(trials=(failed, *results.trials[1:])), RECOMMENDED)
    assert {row.baseline for row in rows} == {None}
    assert {row.metric for row in rows} >= {"goodput", "quality"}


def test_load_is_told_in_words(results: StudyResults) -> None:
    assert load_in_words(results).startswith(
        "Trials replayed the recorded window 4 times faster than recorded, past the knee of the baseline"
    )
    calm = replace(results.trials[0], constraints={"slo:chat": -0.1, "quality:chat": 0.1})
    words = load_in_words(study(trials=(calm,), time_scale=1.0))
    assert "at its recorded pace" in words
    assert "past the knee" not in words


def test_doubts_about_what_is_deployed_come_first(results: StudyResults) -> None:
    others = [replace(t, doubts=("client_lagged: far",)) if t.number in (3, 4, 5) else t for t in results.trials]
    found = doubts.info(study(trials=tuple(others)), RECOMMENDED)
    assert [(row.doubt, row.trials, row.decisive) for row in found] == [
        ("few_requests", (0, 9), True),
        ("client_lagged", (3, 4, 5), False),
    ]


def test_tail_is_named_as_in_the_study_file() -> None:
    tail = {"slo_class": "documents", "metric": "e2e", "percentile": 99}
    assert tail_name(study(spec=spec(tail=tail))) == "p99 E2E, documents"


@pytest.mark.parametrize(
    ("about", "shown", "expected"),
    [
        ("three significant digits", text.number(1234.5), "1,230"),
        ("rounding up a digit", text.number(0.9996), "1.00"),
        ("rounding up to a thousand", text.number(999.6), "1,000"),
        ("small", text.number(0.0012345), "0.00123"),
        ("tiny", text.number(1.2345e-7), "1.23e-07"),
        ("zero", text.number(0), "0"),
        ("not measured", text.number(None), "–"),
        ("endless", text.seconds(float("inf")), "–"),
        ("below a second", text.seconds(0.0123), "12.3 ms"),
        ("above a second", text.seconds(1.236), "1.24 s"),
        ("a share", text.percent(0.95), "95.0 %"),
        ("a size in bytes", text.knob_value("kv_cache_memory_bytes", 64 * 2**20), "64.0 MiB"),
        ("no value", text.knob_value("kv_window", None), "none"),
        ("a switch", text.knob_value("enable", True), "on"),
    ],
)
def test_numbers_as_a_reader_sees_them(about: str, shown: str, expected: str) -> None:
    assert shown == expected, about
