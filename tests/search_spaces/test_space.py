"""The search space: what it accepts, what it refuses, which parameters are inert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.config import knobs, parse_config
from search_spaces.space import ChoiceParameter, load_space
from tests.fakes import cases

ENGINE_SPACE = Path(__file__).parents[2] / "search_spaces" / "engine.yaml"

SPACE = {
    "parameters": {
        "seqs": {"type": "int", "low": 1, "high": 64, "log": True},
        "dtype": {"type": "choice", "choices": ["auto", "int8"]},
        "window": {"type": "choice", "choices": [None, 64, 128]},
        "sinks": {"type": "int", "low": 0, "high": 8, "step": 4, "when": {"window": "not_null"}},
        "draft": {"type": "int", "low": 0, "high": 4},
        "threshold": {"type": "float", "low": 0.1, "high": 0.9, "when": {"draft": "positive", "dtype": "int8"}},
    }
}

REFUSED = [
    ("not a mapping", "[a]", "expected a mapping with the one key 'parameters'"),
    ("no parameters", "parameters: {}", "expected at least one parameter"),
    ("an unknown type", "parameters: {a: {type: itn}}", "a.type: expected int, float, choice, given 'itn'"),
    ("no bounds", "parameters: {a: {type: int, low: 1}}", "a: missing high"),
    ("no choices", "parameters: {a: {type: choice, choices: []}}", "a.choices: expected a list of values"),
    ("a choice twice", "parameters: {a: {type: choice, choices: [1, 2, 1]}}", "listed twice: 1, 2, 1"),
    ("bounds swapped", "parameters: {a: {type: int, low: 4, high: 1}}", "a.low: expected at most high = 1"),
    ("a text as a bound", "parameters: {a: {type: int, low: '1', high: 4}}", "expected a whole number, given '1'"),
    ("a boolean as a bound", "parameters: {a: {type: int, low: true, high: 4}}", "a.low: expected a whole number"),
    ("log from zero", "parameters: {a: {type: int, low: 0, high: 4, log: true}}", "needs a positive number"),
    ("log with a step", "parameters: {a: {type: int, low: 2, high: 4, log: true, step: 2}}", "has step 1"),
    ("a step past high", "parameters: {a: {type: int, low: 0, high: 5, step: 2}}", "a divisor of high - low = 5"),
    ("an endless float", "parameters: {a: {type: float, low: 0, high: .inf}}", "a.high: expected a number"),
    ("a log in words", "parameters: {a: {type: int, low: 1, high: 4, log: 'no'}}", "a.log: expected true or false"),
    ("a number that YAML reads as text", "parameters: {a: {type: float, low: 1e-3, high: 4}}", "YAML reads 1.0e-3 as"),
    ("an unknown key", "parameters: {a: {type: int, low: 0, high: 4, hihg: 4}}", "unknown key; did you mean high?"),
    ("a condition as a text", "parameters: {a: {type: int, low: 0, high: 4, when: b}}", "a.when: expected a mapping"),
    (
        "a condition on a later parameter",
        "parameters: {a: {type: int, low: 0, high: 4, when: {b: 1}}, b: {type: int, low: 0, high: 4}}",
        "a.when: 'b' is not a parameter declared before",
    ),
    (
        "a condition nothing can meet",
        "parameters: {b: {type: int, low: 0, high: 4}, a: {type: int, low: 0, high: 4, when: {b: 9}}}",
        "a.when.b: expected not_null, positive or a whole number in [0, 4], given 9",
    ),
]


@pytest.mark.parametrize(("text", "message"), cases(REFUSED))
def test_refuses_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_space(yaml.safe_load(text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    with pytest.raises(ValueError, match=r"space.yaml: cannot be read"):
        load_space(path)
    path.write_text("parameters: [")
    with pytest.raises(ValueError, match=r"space.yaml: line 1, column 14: not YAML"):
        load_space(path)
    path.write_text("parameters: {a: {type: int, low: 3, high: 1}}")
    with pytest.raises(ValueError, match=r"space.yaml: a.low"):
        load_space(path)


ACTIVE = [
    ("no window: sinks are inert", {"window": None, "sinks": 4}, {"window": None}),
    ("a window: sinks count", {"window": 64, "sinks": 4}, {"window": 64, "sinks": 4}),
    ("one of two conditions", {"window": None, "draft": 2, "dtype": "auto", "threshold": 0.5}, {"draft": 2}),
    ("both conditions", {"draft": 2, "dtype": "int8", "threshold": 0.5}, {"draft": 2, "threshold": 0.5}),
    ("not positive", {"window": None, "draft": 0, "dtype": "int8", "threshold": 0.5}, {"draft": 0}),
]


@pytest.mark.parametrize(("given", "expected"), cases(ACTIVE))
def test_active_leaves_out_what_does_nothing(given: dict[str, Any], expected: dict[str, Any]) -> None:
    values = {"seqs": 8, "dtype": "auto", "window": None, "draft": 0, **given}
    kept = load_space(SPACE).active(values)
    assert expected.items() <= kept.items()
    assert ("sinks" in kept, "threshold" in kept) == ("sinks" in expected, "threshold" in expected)


def test_a_condition_on_an_inert_parameter_does_not_hold() -> None:
    text = "{a: {type: choice, choices: [null, 1]}, b: {type: int, low: 1, high: 2, when: {a: not_null}}"
    space = load_space({"parameters": yaml.safe_load(text + ", c: {type: int, low: 1, high: 2, when: {b: 1}}}")})
    assert space.active({"a": None, "b": 1, "c": 2}) == {"a": None}
    assert space.active({"a": 1, "b": 1, "c": 2}) == {"a": 1, "b": 1, "c": 2}


VALUES_REFUSED = [
    ("unknown", {"sesq": 3}, "sesq: not a parameter of the search space; did you mean seqs?"),
    ("out of range", {"seqs": 65}, "seqs: expected a whole number in [1, 64], given 65"),
    ("a boolean for a number", {"seqs": True}, "seqs: expected a whole number"),
    ("not a choice", {"dtype": "int4"}, "dtype: expected one of auto, int8, given 'int4'"),
    ("between steps", {"window": 64, "sinks": 3}, "sinks: expected a whole number in [0, 8], step 4, given 3"),
    ("active and missing", {"window": 64}, "sinks: no value given"),
]


@pytest.mark.parametrize(("given", "message"), cases(VALUES_REFUSED))
def test_active_checks_values(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_space(SPACE).active({"seqs": 8, "dtype": "auto", "window": None, "draft": 0, **given})
    assert message in str(caught.value)


def test_fingerprint_tells_spaces_apart() -> None:
    space = load_space(SPACE)
    assert space.fingerprint == load_space(SPACE).fingerprint
    changed = {"parameters": {**SPACE["parameters"], "seqs": {"type": "int", "low": 1, "high": 63, "log": True}}}
    assert load_space(changed).fingerprint != space.fingerprint
    assert space.without("sinks").fingerprint != space.fingerprint


def test_without_takes_dependants_along() -> None:
    assert list(load_space(SPACE).without("window").parameters) == ["seqs", "dtype", "draft", "threshold"]


def _ends(parameter: Any) -> tuple[Any, ...]:
    return parameter.choices if isinstance(parameter, ChoiceParameter) else (parameter.low, parameter.high)


@pytest.mark.parametrize("name", list(load_space(ENGINE_SPACE).parameters))
def test_the_engine_takes_every_end_of_every_parameter(name: str) -> None:
    parameter = load_space(ENGINE_SPACE).parameters[name]
    assert name in {knob.name for knob in knobs()}
    for value in _ends(parameter):
        window = {"kv_window": 64} if "kv_window" in parameter.when else {}
        config = parse_config({"model": "m", "draft_model": "d", **window, name: value}, source="test")
        assert getattr(config, name) == value


def test_the_engine_space_holds_the_defaults_of_the_engine() -> None:
    space = load_space(ENGINE_SPACE)
    defaults = {knob.name: knob.default for knob in knobs() if knob.name in space.parameters}
    assert space.active(defaults)["kv_window"] is None
