"""Alert rules for when to tune again: the format, the names, and that their arithmetic is the index that we mean."""

from __future__ import annotations

import ast
import math
import operator
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from engine.metrics import Metrics
from engine.sequence import EngineStats
from tests.fakes import FakeTestbed, cases, make_spec
from tests.tuner.test_study import Log
from tuner.deliver import deliver, export_to
from tuner.recommend import recommend
from tuner.results import load_results
from tuner.serving.export.alerts import ENGINES, LengthBins, Limits, alerts
from tuner.store import Store
from tuner.study import run_study
from tuner.traffic.profile import SERIES, stability_index

DURATION = r"^([0-9]+(ms|[smhdwy]))+$"
RULES: dict[str, Any] = {
    "type": "object", "additionalProperties": False, "required": ["groups"],
    "properties": {"groups": {"type": "array", "items": {
        "type": "object", "additionalProperties": False, "required": ["name", "rules"],
        "properties": {
            "name": {"type": "string", "minLength": 1}, "interval": {"type": "string", "pattern": DURATION},
            "limit": {"type": "integer"}, "labels": {"type": "object"},
            "rules": {"type": "array", "minItems": 1, "items": {"oneOf": [
                {"type": "object", "additionalProperties": False, "required": ["record", "expr"], "properties": {
                    "record": {"type": "string", "pattern": "^[a-zA-Z_:][a-zA-Z0-9_:]*$"}, "expr": {"type": "string"},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}}}},
                {"type": "object", "additionalProperties": False, "required": ["alert", "expr"], "properties": {
                    "alert": {"type": "string"}, "expr": {"type": "string"},
                    "for": {"type": "string", "pattern": DURATION},
                    "keep_firing_for": {"type": "string", "pattern": DURATION},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"},
                               "propertyNames": {"pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}},
                    "annotations": {"type": "object", "additionalProperties": {"type": "string"}}}},
            ]}},
        }}}},
}  # fmt: skip
"""Fields of a rule file, prometheus.io/docs/prometheus/latest/configuration/recording_rules; written by hand."""
VLLM_METRICS = {
    "request_success_total", "request_prompt_tokens_bucket", "request_prompt_tokens_count",
    "request_generation_tokens_bucket", "request_generation_tokens_count", "prefix_cache_queries_total",
    "prefix_cache_hits_total", "spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total",
}  # fmt: skip
"""vllm/v1/metrics/loggers.py and vllm/v1/spec_decode/metrics.py, without the prefix vllm:."""
COUNTS = tuple({6: 30, 7: 200, 8: 400, 9: 250, 10: 100, 11: 20}.get(index, 0) for index in range(len(SERIES) + 1))
FULL = Limits(20.0, LengthBins(SERIES, COUNTS, 0.2), LengthBins(SERIES, COUNTS[2:] + (0, 0), 0.21), 0.6, (0.4, 0.1))


def _rules(limits: Limits, engine: str = "engine") -> list[dict[str, Any]]:
    found = yaml.safe_load(alerts(limits, (engine,), {"study": "demo"}))
    jsonschema.validate(found, RULES)
    rules: list[dict[str, Any]] = found["groups"][0]["rules"]
    return rules


def _metrics(rules: list[dict[str, Any]], prefix: str) -> set[str]:
    """Names of the series that the rules read."""
    named = {name for rule in rules for name in re.findall(rf"\b{prefix}:([a-z0-9_:]+)", rule["expr"])}
    return {name for name in named if not name.startswith("retune_")}


def test_each_threshold_has_its_rule() -> None:
    names = [rule.get("alert", rule.get("record")) for rule in _rules(FULL)]
    assert names == [
        "RetuneRate", "servetune:retune_prompt_length_psi:1h", "RetunePromptLengths",
        "servetune:retune_output_length_psi:1h", "RetuneOutputLengths", "RetuneAcceptance", "RetunePrefixSharing",
    ]  # fmt: skip
    assert [rule["alert"] for rule in _rules(Limits(3.0))] == ["RetuneRate"]
    assert all(rule["labels"]["study"] == "demo" for rule in _rules(FULL) if "alert" in rule)


def test_the_rules_read_what_our_engine_tells() -> None:
    metrics = Metrics(EngineStats)
    metrics.refused("queue")
    metrics.finished("stop", 300, 20, 1.0, 0.9)
    told = metrics.render().decode()
    for name in _metrics(_rules(FULL), "servetune"):
        assert f"\nservetune:{name}" in told, name
    for edge in re.findall(r'_prompt_tokens_bucket\{(le="[^"]+")\}', str(_rules(FULL))):
        assert f"servetune:request_prompt_tokens_bucket{{{edge}}}" in told


def test_the_rules_read_what_vllm_tells() -> None:
    rules = _rules(FULL, "vllm")
    assert _metrics(rules, "vllm") == VLLM_METRICS
    assert _metrics(rules, "servetune") == set()


def _value(expression: str, cumulative: dict[float, float], total: float) -> float:
    """The recorded index, with live counts in place of the series."""
    text = re.sub(
        r'sum\(increase\([a-z_:]+_bucket\{le="([^"]+)"\}\[1h\]\)\)', lambda m: str(cumulative[float(m[1])]), expression
    )
    text = re.sub(r"sum\(increase\([a-z_:]+_count\[1h\]\)\)", str(total), text)
    return _evaluated(ast.parse(text, mode="eval").body)


def _evaluated(node: ast.expr) -> float:
    """Numbers, the four operations and the two functions that the rules use."""
    if isinstance(node, ast.Constant):
        return float(str(node.value))
    if isinstance(node, ast.BinOp):
        operation = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
        found: float = operation[type(node.op)](_evaluated(node.left), _evaluated(node.right))
        return found
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name), ast.dump(node)
    return float({"clamp_min": max, "ln": math.log}[node.func.id](*(_evaluated(one) for one in node.args)))


LIVE = [
    ("as tuned", COUNTS, 0.0, 1e-6),
    ("longer by one step", (0, *COUNTS[:-1]), 0.2, 5.0),
    ("slightly other", tuple(round(c * (1.1 if i < 9 else 0.9)) for i, c in enumerate(COUNTS)), 0.0, 0.05),
]


@pytest.mark.parametrize(("live", "least", "most"), cases(LIVE))
def test_the_recorded_index_is_the_one_that_we_mean(live: tuple[int, ...], least: float, most: float) -> None:
    rule = _rules(FULL)[1]
    upto = dict(zip((float(edge) for edge in SERIES), [sum(live[: i + 1]) for i in range(len(SERIES))], strict=True))
    found = _value(rule["expr"], upto, sum(live))
    assert least <= found <= most
    edges = [0.0, *dict.fromkeys(float(edge) for edge in re.findall(r'le="([^"]+)"', rule["expr"])), math.inf]
    places = [*(float(edge) for edge in SERIES), math.inf]
    merged = [
        [sum(c for place, c in zip(places, counts, strict=True) if low < place <= high)
         for low, high in zip(edges, edges[1:], strict=False)]
        for counts in (COUNTS, live)
    ]  # fmt: skip
    assert all(count >= 0.05 * sum(COUNTS) for count in merged[0])
    assert found == pytest.approx(stability_index(*merged), abs=0.03), "but for half a count in a bin"


@pytest.mark.parametrize("place", [0, 7, len(SERIES)])
def test_lengths_that_are_all_alike_have_a_rule_too(place: int) -> None:
    counts = tuple(500 if index == place else 0 for index in range(len(SERIES) + 1))
    rule = _rules(Limits(1.0, LengthBins(SERIES, counts, 0.2)))[1]
    for moved, drifted in ((0, False), (100, True)):
        live = list(counts)
        live[place] -= moved
        live[place - 1 if place else 1] += moved
        upto = {float(edge): float(sum(live[: i + 1])) for i, edge in enumerate(SERIES)}
        assert (_value(rule["expr"], upto, 500.0) > 0.2) == drifted


def test_exports_bring_their_alerts(tmp_path: Path) -> None:
    space = {"parameters": {"max_num_seqs": {"type": "int", "low": 1, "high": 64}}}
    slos = {"chat": {"ttft": 30.0, "attainment": 0.5}}
    spec = make_spec(tmp_path, budget={"trials": 1, "finalists": 0}, slos=slos, search_space=space)
    with Store(tmp_path / "study.db") as store:
        run_study(spec, store, FakeTestbed(), Log(), {}, False)
        results = load_results(store, "fake")
    found = recommend(results)
    for target, engine, groups in (
        ("engine", None, ["servetune-retune"]), ("vllm", "vllm", ["vllm-retune"]), ("sglang", None, None),
        ("systemd", "engine", ["servetune-retune"]), ("systemd", None, ["vllm-retune"]),
    ):  # fmt: skip
        paths = export_to(target, results, found, tmp_path / f"{target}-{engine}", engine)
        written = [path for path in paths if path.name == "alerts.yaml"]
        assert [path.is_file() for path in written] == ([True] if groups else [])
        for path in written:
            assert [group["name"] for group in yaml.safe_load(path.read_text())["groups"]] == groups
    paths = deliver(results, found, tmp_path / "run")
    assert len(paths) == len(set(paths))
    rules = yaml.safe_load((tmp_path / "run/deploy/alerts.yaml").read_text())
    jsonschema.validate(rules, RULES)
    assert [group["name"] for group in rules["groups"]] == [f"{prefix}-retune" for prefix in ENGINES.values()]
    assert "# Tune again when the rate stays above" in (tmp_path / "run/recommended.yaml").read_text()
