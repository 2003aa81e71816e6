"""SearchSpace: what a study may vary, by name, range and condition. Knows no sampler and no engine.

File format (YAML):

    parameters:
      max_num_seqs:   {type: int, low: 1, high: 64, log: true}
      kv_window:      {type: choice, choices: [null, 128, 256]}
      kv_sink_tokens: {type: int, low: 0, high: 16, step: 4, when: {kv_window: not_null}}

`when` maps another parameter, declared earlier, to a value it must have, to `not_null` or to `positive`. Where the
condition does not hold the parameter does nothing and is left out of the configuration.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from engine.yaml_file import read_yaml

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class IntParameter:
    """Whole numbers low, low + step, … up to high. log: searched on a logarithmic scale (step is then 1)."""

    low: int
    high: int
    log: bool = False
    step: int = 1
    when: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            if type(getattr(self, name)) is not int:
                raise ValueError(f"{name}: expected a whole number, given {getattr(self, name)!r}")
        _check_range(self.low, self.high, self.log)
        if self.step < 1 or (self.high - self.low) % self.step:
            raise ValueError(f"step: expected a divisor of high - low = {self.high - self.low}, given {self.step}")
        if self.log and self.step != 1:
            raise ValueError(f"step: a logarithmic scale has step 1, given {self.step}")

    def contains(self, value: Value) -> bool:
        return type(value) is int and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def describe(self) -> str:
        return f"a whole number in [{self.low}, {self.high}]" + (f", step {self.step}" if self.step > 1 else "")


@dataclass(frozen=True, slots=True)
class FloatParameter:
    """Real numbers in [low, high]. log: searched on a logarithmic scale."""

    low: float
    high: float
    log: bool = False
    when: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if type(getattr(self, name)) not in (int, float) or not math.isfinite(getattr(self, name)):
                hint = "; YAML reads 1.0e-3 as a number, 1e-3 as text" if isinstance(getattr(self, name), str) else ""
                raise ValueError(f"{name}: expected a number, given {getattr(self, name)!r}{hint}")
        _check_range(self.low, self.high, self.log)

    def contains(self, value: Value) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def describe(self) -> str:
        return f"a number in [{self.low}, {self.high}]"


@dataclass(frozen=True, slots=True)
class ChoiceParameter:
    """One of `choices`, which may include null."""

    choices: tuple[Value, ...]
    when: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.choices, list | tuple) or not self.choices:
            raise ValueError(f"choices: expected a list of values, given {self.choices!r}")
        object.__setattr__(self, "choices", tuple(self.choices))
        for choice in self.choices:
            if not isinstance(choice, str | int | float | bool | None):
                raise ValueError(f"choices: expected texts, numbers, true, false or null, given {choice!r}")
        if len({(type(c), c) for c in self.choices}) < len(self.choices):
            raise ValueError(f"choices: a value is listed twice: {_listed(self.choices)}")

    def contains(self, value: Value) -> bool:
        return any(type(value) is type(choice) and value == choice for choice in self.choices)

    def describe(self) -> str:
        return f"one of {_listed(self.choices)}"


Parameter = IntParameter | FloatParameter | ChoiceParameter
_TYPES: dict[str, type[Parameter]] = {"int": IntParameter, "float": FloatParameter, "choice": ChoiceParameter}


def key(knobs: Mapping[str, Value]) -> str:
    """Equal for equal knob values, whatever their order."""
    return json.dumps(knobs, sort_keys=True)


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Parameters in declaration order; a condition looks only at parameters declared before."""

    parameters: Mapping[str, Parameter]

    def __post_init__(self) -> None:
        earlier: list[str] = []
        for name, parameter in self.parameters.items():
            for other, wanted in parameter.when.items():
                if other not in earlier:
                    near = _near(other, earlier)
                    raise ValueError(f"{name}.when: {other!r} is not a parameter declared before{near}")
                _check_condition(name, other, wanted, self.parameters[other])
            earlier.append(name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) of the space; equal spaces have equal fingerprints."""
        table = {name: [type(p).__name__, asdict(p)] for name, p in self.parameters.items()}
        return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]

    def is_active(self, name: str, values: Mapping[str, Value]) -> bool:
        """Whether `name` does anything, given the values of the parameters declared before it."""
        return all(
            self.is_active(other, values) and other in values and _holds(wanted, values[other])
            for other, wanted in self.parameters[name].when.items()
        )

    def active(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """`values` without those of inert parameters, in declaration order: two configurations that behave alike
        become equal. Raises ValueError for an unknown name, a missing one and a value outside its range."""
        for name in values:
            if name not in self.parameters:
                raise ValueError(f"{name}: not a parameter of the search space{_near(name, list(self.parameters))}")
        kept: dict[str, Value] = {}
        for name, parameter in self.parameters.items():
            if not self.is_active(name, kept):
                continue
            if name not in values:
                raise ValueError(f"{name}: no value given; expected {parameter.describe()}")
            if not parameter.contains(values[name]):
                raise ValueError(f"{name}: expected {parameter.describe()}, given {values[name]!r}")
            kept[name] = values[name]
        return kept

    def least(self) -> dict[str, Value]:
        """The lowest value of each parameter, or its first choice: what to give where something must be given."""
        return {n: p.choices[0] if isinstance(p, ChoiceParameter) else p.low for n, p in self.parameters.items()}

    def without(self, *names: str) -> SearchSpace:
        """The space without these parameters and without those whose condition needs one of them."""
        gone = set(names)
        for name, parameter in self.parameters.items():
            if gone & set(parameter.when):
                gone.add(name)
        return SearchSpace({name: p for name, p in self.parameters.items() if name not in gone})

    def without_choice(self, name: str, choice: Value) -> SearchSpace:
        """The space in which a parameter cannot take this value. The parameter must have others."""
        parameter = self.parameters[name]
        assert isinstance(parameter, ChoiceParameter), f"{name} is no list of choices"
        left = replace(parameter, choices=tuple(c for c in parameter.choices if c != choice))
        return SearchSpace({**self.parameters, name: left})


def load_space(source: Path | Mapping[str, Any]) -> SearchSpace:
    """Read a file, or the mapping that a file would hold. Raises ValueError: one line with file, key, expectation."""
    if not isinstance(source, Path):
        return _parse(source, "search_space")
    return _parse(read_yaml(source), str(source))


def _parse(values: Any, where: str) -> SearchSpace:
    if not isinstance(values, Mapping) or list(values) != ["parameters"]:
        raise ValueError(f"{where}: expected a mapping with the one key 'parameters'")
    table = values["parameters"]
    if not isinstance(table, Mapping) or not table:
        raise ValueError(f"{where}: parameters: expected at least one parameter")
    try:
        return SearchSpace({str(name): _parse_parameter(str(name), entry) for name, entry in table.items()})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _parse_parameter(name: str, entry: Any) -> Parameter:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{name}: expected a mapping with the key 'type', given {entry!r}")
    kind = entry.get("type")
    if kind not in _TYPES:
        raise ValueError(f"{name}.type: expected {', '.join(_TYPES)}, given {kind!r}{_near(str(kind), list(_TYPES))}")
    settings = {str(key): value for key, value in entry.items() if key != "type"}
    allowed = [f.name for f in fields(_TYPES[kind])]
    for key in settings:
        if key not in allowed:
            raise ValueError(f"{name}.{key}: unknown key{_near(key, allowed)}")
    if not isinstance(settings.get("when", {}), Mapping):
        raise ValueError(f"{name}.when: expected a mapping of parameter to value, given {settings['when']!r}")
    try:
        return _TYPES[kind](**settings)
    except TypeError:
        needed = [key for key in ("low", "high", "choices") if key in allowed and key not in settings]
        raise ValueError(f"{name}: missing {', '.join(needed)}") from None
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from None


def _check_range(low: float, high: float, log: bool) -> None:
    if not isinstance(log, bool):
        raise ValueError(f"log: expected true or false, given {log!r}")
    if low > high:
        raise ValueError(f"low: expected at most high = {high}, given {low}")
    if log and low <= 0:
        raise ValueError(f"low: a logarithmic scale needs a positive number, given {low}")


def _check_condition(name: str, other: str, wanted: Value, parameter: Parameter) -> None:
    """A condition that no value of the other parameter can meet is a mistake."""
    if wanted in ("not_null", "positive"):
        return
    if not parameter.contains(wanted):
        expected = f"not_null, positive or {parameter.describe()}"
        raise ValueError(f"{name}.when.{other}: expected {expected}, given {wanted!r}")


def _holds(wanted: Value, value: Value) -> bool:
    if wanted == "not_null":
        return value is not None
    if wanted == "positive":
        return isinstance(value, int | float) and value > 0
    return type(value) is type(wanted) and value == wanted


def _near(name: str, candidates: list[str]) -> str:
    near = difflib.get_close_matches(name, candidates, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _listed(choices: tuple[Value, ...]) -> str:
    return ", ".join("null" if choice is None else str(choice) for choice in choices)
