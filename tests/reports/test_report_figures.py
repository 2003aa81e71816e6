"""What the figures and tables of the report say, compared as tables."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hand_made_study import RECOMMENDED, evidence, recommendation, spec, stored, study, traffic
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from reports import (
    alternatives,
    assurance,
    comparison,
    doubts,
    knob_effects,
    knob_importances,
    latency_distribution,
    pareto_front,
    quality_slices,
    recall_grid,
    scenarios,
    single_changes,
    slo_compliance,
    speculation_domains,
    study_history,
    text,
    timeline,
    trial_cards,
    verifications,
)
from reports import trial_table as trials
from reports.comparison import shown, shown_change
from reports.evidence import NOTHING, OF_TRIALS
from reports.page import load_in_words, tail_name
from reports.parts import Figure, Table
from reports.sections import front
from reports.tables import tables
from tests.fakes import cases
from tuner.recommend import recommend
from tuner.results import StudyResults
from tuner.retune import retune_when
from tuner.scoring.metrics import Interval
from tuner.stored import StoredMeasurement, ValidationFailure
from tuner.worth import LADDER, claim


def test_pareto_rows_are_the_measured_trials(results: StudyResults) -> None:
    rows = pareto_front.info(results, RECOMMENDED)
    assert [row.trial for row in rows] == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14]
    assert {row.trial: row.role for row in rows if row.role} == {0: "baseline", 9: "recommended"}
    best = next(row for row in rows if row.trial == 9)
    assert (best.goodput, best.quality, best.tail_latency, best.state) == (5.6, 0.9985, 0.36, "feasible")
    assert best.knobs["kv_cache_dtype"] == "int8"


def test_what_was_measured_again_stands_at_what_is_claimed_wherever_it_is_told() -> None:
    """The claim lies half a rung below the one that was replayed."""
    raced, rung = between_rungs()
    found, (searched, claimed) = recommend(raced), (raced.trials[RECOMMENDED], claim(raced, RECOMMENDED))
    assert found.trial is searched and claimed is not None and claimed.time_scale < claimed.replayed_scale == rung
    assert claimed.goodput.value == pytest.approx(5.0 * claimed.time_scale / rung) and claimed.tail_latency == 0.4
    assert f"Deploy trial 9: {claimed.goodput.value:.2f} good requests/s" in found.verdict
    row = next(row for row in pareto_front.info(raced, RECOMMENDED) if row.trial == RECOMMENDED)
    assert row.at == {"goodput": claimed.goodput.value, "quality": 0.9985, "tail_latency": 0.4}
    assert row.searched_at == {"goodput": 5.6, "quality": 0.9985, "tail_latency": 0.36}
    for against, plane in pareto_front.plot([row], "p95 TTFT, chat").items():
        drawn = {trace.name: (*trace.x, *trace.y) for trace in plane.data if trace.customdata is not None}
        assert drawn["recommended"] == pytest.approx((row.at["goodput"], row.at[against]), rel=1e-5)
        assert drawn["in the search"] == pytest.approx((5.6, row.searched_at[against]), rel=1e-5)
    (plot, *_) = front([row], "p95 TTFT, chat", 6).parts
    told = text.number(claimed.goodput.value)
    assert isinstance(plot, Figure) and f"recommended {told}, in the search 5.60 requests/s" in plot.label
    card = next(one for one in trial_cards.info(raced, found, "p95 TTFT, chat")["cards"] if one["trial"] == RECOMMENDED)
    figures, load = dict(card["figures"]), text.plain(claimed.time_scale)
    assert figures["goodput claimed"] == f"{text.interval(claimed.goodput)} requests/s at {load}x, tuning window again"
    assert figures["goodput in the search"].startswith("5.60 [5.38, 5.77] requests/s at 4x")
    assert figures["p95 TTFT, chat, claimed"] == f"400 ms at {text.plain(rung)}x"
    assert card["at"]["goodput"] == pytest.approx(claimed.goodput.value, rel=1e-5)
    (_, cells) = trials.table(trials.info(raced, RECOMMENDED)).rows[RECOMMENDED]
    assert [cell.text for cell in cells[2:5]] == [f"{told} at {load}x", "5.60", "4x"]
    csv = tables(raced, found, NOTHING)
    for name in ("pareto_front", "trials"):
        line = csv[name].set_index("trial").loc[RECOMMENDED]
        assert (line["claimed_goodput"], line["goodput"]) == (claimed.goodput.value, 5.6)
    assert next(r for r in alternatives.info(found)).goodput == claimed.goodput
    assert next(r for r in comparison.info(found) if r.metric == "goodput").recommended == claimed.goodput


def test_a_claim_says_what_was_replayed_at_which_load() -> None:
    raced, rung = between_rungs()
    found, held = recommend(raced), claim(raced, RECOMMENDED)
    assert held is not None
    sentence = (
        f"Measured again on the tuning window it held 2 of 3 replays at {rung:.3g}x: one more replay at "
        f"{held.time_scale:.3g}x, which was not replayed itself, would hold with probability 0.95."
    )
    assert sentence in found.reasons
    again = assurance.info(raced, found)[1]
    assert (again.answer, again.holds) == (f"held {held.time_scale:.3g}x", True)
    assert again.detail == f"{sentence} The search saw it hold 4x."
    when = retune_when(raced, found)
    assert when is not None and when.held_rate == pytest.approx(6.1 * held.time_scale / rung)


def raced_at(rung: float) -> StoredMeasurement:
    """What between_rungs() rests on, raw."""
    return replace(stored(study(), RECOMMENDED, "repeat", rung, 20), created=MEDIAN)


MEDIAN = "2026-11-21T12:20:30.000+00:00"
"""When the median of the replays between_rungs() was stored."""


def between_rungs() -> tuple[StudyResults, float]:
    """The recommended trial was replayed three times at one rung, and held it twice; what it may claim is half a rung
    lower. And that rung."""
    rung, like = LADDER[LADDER.index(4.046)], study().validations[3]
    again = tuple(
        replace(like, purpose="repeat", window="tune", time_scale=rung, constraints={"slo:chat": value},
                traffic=traffic(goodput, 0.4, 0.96), created=created)
        for goodput, value, created in ((5.1, -0.35, "first"), (5.0, -0.3, MEDIAN), (4.9, 0.01, "last"))
    )  # fmt: skip
    climbed = [replace(t, rungs=((4.0, -0.1), (4.6, 0.1))) if t.number == RECOMMENDED else t for t in study().trials]
    return study(trials=tuple(climbed), validations=again), rung


def test_pareto_marks_a_recommended_baseline_as_recommended(results: StudyResults) -> None:
    rows = pareto_front.info(results, 0)
    assert [row.trial for row in rows if row.role == "recommended"] == [0]
    assert not [row for row in rows if row.role == "baseline"]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), max_size=12))
def test_staircase_is_the_feasible_points_that_nothing_beats(points: list[tuple[int, int, bool]]) -> None:
    rows = [
        pareto_front.Row(i, "feasible" if ok else "infeasible", "", float(x), float(y), 0.1, 1.0, None, None, "", None,
                         False, {})
        for i, (x, y, ok) in enumerate(points)
    ]  # fmt: skip
    feasible = {(x, y) for x, y, ok in points if ok}
    unbeaten = [p for p in feasible if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in feasible)]
    assert list(pareto_front.staircase(rows)) == sorted(unbeaten)
    slow = [replace(row, tail_latency=-row.quality) for row in rows]
    assert [(x, -y) for x, y in pareto_front.staircase(slow, pareto_front.TAIL)] == sorted(unbeaten)


def test_figure_tells_states_apart_by_symbol_and_colour(results: StudyResults) -> None:
    for plane in pareto_front.plot(pareto_front.info(results, RECOMMENDED), "p95 TTFT, chat").values():
        drawn = [trace for trace in plane.data if trace.marker.symbol and trace.name != "selected"]
        looks = {trace.name: (trace.marker.symbol, trace.marker.color) for trace in drawn}
        (searched,) = [trace for trace in drawn if trace.name == "in the search"]
        assert list(searched.customdata) == [9] and len(looks) == 6
        drawn.remove(searched)
        del looks["in the search"]
        assert len({symbol for symbol, _ in looks.values()}) == 5
        assert looks["feasible"][1] != looks["infeasible"][1]
        assert sorted(number for t in drawn for number in t.customdata) == [
            0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14
        ], "what a click selects"  # fmt: skip


def test_slo_rows_by_group_condition_and_role(results: StudyResults) -> None:
    rows = slo_compliance.info(results, RECOMMENDED)
    conditions = ["in the search", "held-out traffic", "recorded rate"]
    expected = [(g, c, w, r) for g in ("class", "tenant") for c in ("chat", "documents") for w in conditions
                for r in ("baseline", "recommended")]  # fmt: skip
    assert [(row.group, row.name, row.condition, row.role) for row in rows] == expected
    first = rows[0]
    assert (first.good, first.offered, first.target, first.holds, first.time_scale) == (132, 240, 0.95, False, 4.0)
    assert (first.p95_ttft, rows[1].p95_ttft, rows[1].holds) == (1.42, 0.36, True)
    assert first.headroom == pytest.approx(1 - math.exp(0.4)) and rows[1].headroom == pytest.approx(
        1 - math.exp(-0.025)
    )
    assert slo_compliance.same([r for r in rows if r.group == "class"], [r for r in rows if r.group == "tenant"])


def test_the_tenants_closest_to_their_bounds_are_kept(results: StudyResults) -> None:
    rows = slo_compliance.info(results, RECOMMENDED)
    many = [replace(row, name=f"t{i}", headroom=0.9 - i / 10) for i, row in enumerate(rows[:8])]
    many.append(replace(rows[0], name="idle", headroom=None))
    assert [row.name for row in slo_compliance.worst(many, 3)] == ["t5", "t6", "t7"]


# what was measured for one purpose, as (load, constraint) each; the load that decides, and whether it holds
LADDERS: list[tuple[str, list[tuple[float, float]], float, bool]] = [
    ("held at once", [(4.0, -0.1)], 4.0, True),
    ("held two rungs down", [(4.0, 0.2), (3.5, 0.1), (3.0, -0.1)], 3.0, True),
    ("held at the higher of two", [(3.0, -0.2), (4.0, -0.1)], 4.0, True),
    ("a slow moment among three", [(3.0, -0.1), (4.0, -0.1), (4.0, 0.3), (4.0, -0.2)], 4.0, True),
    ("a lucky one among three", [(3.0, -0.1), (4.0, 0.1), (4.0, 0.3), (4.0, -0.2)], 3.0, True),
    ("never held", [(4.0, 0.2), (3.5, 0.1), (3.0, 0.05)], 3.0, False),
]


@pytest.mark.parametrize(("tried", "load", "holds"), cases(LADDERS))
def test_the_highest_load_held_decides(
    tried: list[tuple[float, float]], load: float, holds: bool, results: StudyResults
) -> None:
    like = results.validations[3]
    again = tuple(replace(like, time_scale=scale, constraints={"slo:chat": value}) for scale, value in tried)
    decided = scenarios.decided(scenarios.info(study(validations=again), RECOMMENDED))
    (found,) = [one for one in decided if one.row.scenario == "holdout"]
    assert (found.row.time_scale, found.holds) == (load, holds)
    at = [value <= 0 for scale, value in tried if scale == load]
    assert found.told == (f"{sum(at)} of {len(at)}" if len(at) > 1 else "yes" if holds else "no")


def test_scenarios_hold_every_validation_and_every_failure(results: StudyResults) -> None:
    lost = ValidationFailure(3, "repeat", "tune", 4.0, "engine_hung", "no token for 30 s")
    rows = scenarios.info(study(validation_failures=(lost,)), RECOMMENDED)
    assert [(row.scenario, row.trial, row.role, row.holds) for row in rows] == [
        ("search", 0, "baseline", False),
        ("search", 9, "recommended", True),
        ("search", 3, "other finalist", True),
        ("holdout", 0, "baseline", False),
        ("holdout", 9, "recommended", True),
        ("recorded_rate", 0, "baseline", True),
        ("recorded_rate", 9, "recommended", True),
        ("the requests in another order", 9, "recommended", True),
        ("next to it: max_num_seqs 32", 9, "recommended", False),
        ("repeat", 3, "other finalist", False),
    ]
    assert [row.varied for row in rows[-4:]] == [False, True, True, False]
    assert rows[-1].failure == "engine_hung: no token for 30 s" and rows[-1].goodput is None
    assert [row.time_scale for row in scenarios.calibration(results)] == [2.0, 4.0]


def test_a_change_is_worth_what_the_rest_holds_without_it(results: StudyResults) -> None:
    rows = single_changes.info(results, recommendation(results))
    assert [(row.configuration, row.before, row.after, row.time_scale, row.holds) for row in rows] == [
        ("baseline", None, None, 4.0, False),
        ("recommended", None, None, 4.0, True),
        ("without max_num_seqs", 16, 64, 4.0, False),
        ("without kv_cache_dtype", "auto", "int8", 3.5, True),
        ("without num_speculative_tokens", 0, 3, 4.0, True),
    ]
    assert rows[3].goodput.value == pytest.approx(4.8 * 0.97)
    assert single_changes.info(results, recommendation(results, None)) == ()
    assert single_changes.info(study(validations=()), recommendation(results)) == ()


def test_how_sure_says_what_was_proven(results: StudyResults) -> None:
    rows = assurance.info(results, recommendation(results))
    assert [(row.answer, row.holds) for row in rows] == [
        ("> 99 % likely", True), ("held 4x", True), ("0 of 2 classes", False), ("1 doubt", False),
    ]  # fmt: skip
    assert assurance.sentence(rows) == (
        "How sure: > 99 % likely to serve more than the baseline; measured again it held 4x; SLOs proven at 95 % for 0 "
        "of 2 classes; 1 doubt about its trial in the search."
    )
    untested = assurance.info(study(validations=()), recommendation(results))
    assert "not measured again" in assurance.sentence(untested)
    assert assurance.info(results, recommendation(results, None)) == () and assurance.sentence(()) == ""


def test_what_was_verified_since_is_told(results: StudyResults) -> None:
    """Expected values by hand: in `late` every answer takes 4 s and more, the SLO of chat allows 0.5."""
    held, late = verifications.info(results, evidence(results))
    assert (held.traffic, held.rounds, held.holds, held.comparison) == ("holdout", 1, True, "better")
    assert held.attainment == {"chat": pytest.approx(40 / 41), "documents": 1.0} and held.missed == ()
    assert held.difference is not None and held.difference.low > 0
    assert (late.traffic, late.holds, late.missed) == (
        "week-2.jsonl",
        False,
        ("quality:recall", "slo:chat", "slo:documents"),
    )
    told = assurance.info(results, recommendation(results), evidence(results))[2]
    assert told.answer == "it did not hold" and not told.holds
    assert told.detail == "2026-12-05 08:30 UTC, week-2.jsonl at 3.5x: missed quality:recall, slo:chat, slo:documents"
    (table, _) = verifications.section((held, late), RECOMMENDED).parts
    assert isinstance(table, Table) and [row[1][4].text for row in table.rows] == ["no", "yes"], "the last first"


@given(st.floats(0, 50), st.floats(0.01, 5), st.floats(0, 50), st.floats(0.01, 5))
def test_probability_of_more_is_that_of_the_difference(a: float, da: float, b: float, db: float) -> None:
    new, old = Interval(a, a - 1.96 * da, a + 1.96 * da), Interval(b, b - 1.96 * db, b + 1.96 * db)
    expected = norm.sf(0, loc=a - b, scale=math.hypot(da, db))
    assert assurance.exceeds(new, old) == pytest.approx(expected, abs=1e-4)


def test_latencies_are_those_at_the_recorded_rate_where_both_were_measured_there(results: StudyResults) -> None:
    rows = latency_distribution.info(results, RECOMMENDED, evidence(results))
    assert {row.time_scale for row in rows} == {1.0}
    chat = [row for row in rows if (row.slo_class, row.metric, row.role) == ("chat", "ttft", "recommended")]
    assert [row.seconds for row in chat] == sorted(row.seconds for row in chat)
    assert chat[-1].share == pytest.approx(40 / 41), "the request that failed is never answered"
    assert next(row.share for row in chat if row.seconds >= 0.3) == pytest.approx(20 / 41)
    assert {row.bound for row in chat} == {0.5}
    gaps = [row for row in rows if (row.slo_class, row.metric, row.role) == ("documents", "itl", "baseline")]
    assert gaps[-1].share == 1.0 and {row.bound for row in gaps} == {None}
    raw = evidence(results)
    searched = replace(raw, measured=tuple(one for one in raw.measured if one.measurement.purpose in OF_TRIALS))
    assert {row.time_scale for row in latency_distribution.info(results, RECOMMENDED, searched)} == {4.0}
    raced, rung = between_rungs()
    rows = latency_distribution.info(
        raced, RECOMMENDED, replace(searched, measured=(*searched.measured, raced_at(rung)))
    )
    assert {(row.role, row.time_scale) for row in rows} == {("baseline", 4.0), ("recommended", rung)}, "where it rests"


@given(st.lists(st.floats(0, 1e3), max_size=400), st.integers(0, 5))
def test_a_thinned_curve_lies_on_the_whole_one(values: list[float], lost: int) -> None:
    points = latency_distribution.thinned(values, len(values) + lost)
    assert len(points) <= latency_distribution.POINTS + latency_distribution.TAIL_POINTS
    for share, value in points:
        assert sum(one <= value for one in values) / (len(values) + lost) >= share - 1e-12
    assert not values or points[-1] == (len(values) / (len(values) + lost), max(values))


def test_recall_grid_counts_what_the_reference_got_right(results: StudyResults) -> None:
    rows = recall_grid.info(results, RECOMMENDED, evidence(results))
    assert [(r.role, r.length_low, r.length_high, r.depth_low, r.depth_high) for r in rows[:6]] == [
        ("baseline", 128, 255, 0.0, 0.1),
        ("baseline", 128, 255, 0.1, 0.25),
        ("baseline", 128, 255, 0.9, 1.0),
        ("baseline", 256, 511, 0.0, 0.1),
        ("baseline", 256, 511, 0.1, 0.25),
        ("baseline", 256, 511, 0.9, 1.0),
    ]
    assert [(r.probes, r.right, r.kept) for r in rows[:6]] == [(2, 2, 2)] * 5 + [(2, 1, 1)]
    assert [(r.right, r.kept) for r in rows[6:]] == [(2, 2), (2, 2), (2, 1), (2, 2), (2, 2), (1, 0)]


def test_speculation_pays_beyond_its_break_even(results: StudyResults) -> None:
    rows = speculation_domains.info(results, RECOMMENDED, evidence(results))
    assert [(row.trial, row.slice, row.pays, row.lossless) for row in rows] == [
        (9, "code", True, True),
        (9, "prose", False, True),
    ]
    assert rows[0].acceptance is not None and rows[0].acceptance.value == 0.8
    assert rows[0].break_even == pytest.approx(0.5437, abs=1e-3), "1 + a + a^2 + a^3 = 2"


def test_timeline_has_every_measurement_and_failure(results: StudyResults) -> None:
    rows = timeline.info(results, evidence(results))
    assert [(row.phase, row.trial, row.state) for row in rows] == [
        ("calibration", None, "measured"),
        ("search", 0, "infeasible"),
        ("search", 2, "failed"),
        ("search", 7, "failed"),
        ("search", 12, "failed"),
        ("search", 15, "failed"),
        ("search", 9, "feasible"),
        ("search", 9, "infeasible"),
        ("recorded_rate", 0, "measured"),
        ("recorded_rate", 9, "measured"),
    ]
    assert (rows[0].start, rows[0].end, rows[-1].end) == (0, 30, 8 * 60 + 30)
    assert [(one.phase, one.measurements, one.total, one.replay) for one in timeline.spent(rows)] == [
        ("calibration", 1, 30, 20),
        ("search", 7, 138, 60),
        ("recorded_rate", 2, 60, 40),
    ]


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


def test_effects_of_knobs_come_with_their_uncertainty(results: StudyResults) -> None:
    found = knob_importances.analyses(results)
    assert list(found) == ["goodput", "quality", "tail latency"]
    rows = knob_importances.info(found)
    assert {row.objective for row in rows if row.second} == set(found)
    assert all(row.share.low <= row.share.value <= row.share.high <= 1 for row in rows)
    alone = knob_effects.effects(found["goodput"])
    chunk = [one.value for one in alone if one.knob == "prefill_chunk_size"]
    assert chunk == [32, 64, 96, 128, None] and all(one.goodput.low < one.goodput.value for one in alone)
    few = study(trials=results.trials[:6])
    assert knob_importances.analyses(few) == {} and knob_effects.effects(None) == ()


def test_the_load_counts_as_a_knob_where_it_differs(results: StudyResults) -> None:
    climbed = tuple(replace(t, time_scale=4.0 if t.number < 8 else 4.6) for t in results.trials)
    rows = knob_importances.info(knob_importances.analyses(study(trials=climbed)))
    assert "load" in {row.knob for row in rows}
    assert "load" not in {row.knob for row in knob_importances.info(knob_importances.analyses(results))}


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
    assert failed["in the search (requests/s)"].text == failed["claimed (requests/s)"].text == "–"


def test_comparison_shows_both_with_change(results: StudyResults) -> None:
    rows = {row.metric: row for row in comparison.info(recommendation(results))}

    def told(metric: str) -> tuple[str, str, str]:
        row = rows[metric]
        return (*(shown(value, row.unit) for value in (row.baseline, row.recommended)), shown_change(row.change))

    assert told("goodput") == ("3.20 [3.07, 3.30]", "5.60 [5.38, 5.77]", "+75.0 %")
    assert told("chat p95 ttft at the recorded rate") == ("1.42 s", "360 ms", "−74.6 %")
    assert told("quality") == ("–", "0.9985 [0.9965, 0.9995]", "")


def test_load_is_told_in_words(results: StudyResults) -> None:
    assert "at 4 times its recorded pace, which the baseline misses" in load_in_words(results)
    held = study(time_scale=2.0)
    assert "at 2 times its recorded pace, the highest load found that the baseline holds" in load_in_words(held)
    fixed = spec(traffic={"trace": "t", "time_scale": 1.0})
    assert load_in_words(study(spec=fixed, time_scale=1.0)) == (
        "Trials replayed the recorded window at its recorded pace, the load that the study file gives."
    )


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
        ("tiny", text.number(1.2345e-7), "1.23e−07"),
        ("below zero", text.number(-0.5), "−0.500"),
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
