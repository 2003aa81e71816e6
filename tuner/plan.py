"""Plan: a study file with everything that it names read and checked, before any engine is started."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.space import ChoiceParameter, SearchSpace, load_space
from tuner.environment import file_hash, model_hash
from tuner.errors import ConfigRejected
from tuner.reference import production_probes, reference_key
from tuner.scored import config_of, floor_of, slo_of
from tuner.scoring.intervals import proportion_lower
from tuner.scoring.probes import FULL, Probe, check_slices, load_probes, screened
from tuner.scoring.slo import SLO
from tuner.serving import adapters
from tuner.serving.api import ANSWER_TOKENS
from tuner.serving.config import ServingConfig
from tuner.serving.testbed import Load
from tuner.spec import StudySpec
from tuner.traffic.trace import Trace
from tuner.traffic.trace_file import load_trace


@dataclass(frozen=True, slots=True)
class Plan:
    """What a study will do. windows: "tune" and, if the study file names one, "holdout". baseline: knobs of trial 0,
    without inert ones. hashes: of the files that the study's results depend on."""

    spec: StudySpec
    space: SearchSpace
    windows: Mapping[str, Trace]
    probes: tuple[Probe, ...]
    baseline: Mapping[str, Any]
    hashes: Mapping[str, str]
    trace_provenance: Mapping[str, Any]

    def config(self, knobs: Mapping[str, Any]) -> ServingConfig:
        """The configuration of a trial."""
        return config_of(self.spec, knobs)

    @property
    def slos(self) -> dict[str, SLO]:
        """SLO class -> bounds and attainment."""
        return {name: slo_of(bounds) for name, bounds in self.spec.slos.items()}

    @property
    def reference(self) -> ServingConfig:
        """The configuration whose answers all others are held against: of `model`, and of whole prompts."""
        whole = {"max_model_len": None} if "max_model_len" in self.space.parameters else {}
        model = {"model": str(self.spec.model)} if self.spec.models else {}
        return self.config({**self.baseline, **adapters.REFERENCE_KNOBS, **whole, **model})

    @property
    def reference_key(self) -> str:
        """Content hash of everything that the reference answers depend on."""
        return reference_key(self.hashes["model"], self.probes, self.reference)

    @property
    def constraint_names(self) -> tuple[str, ...]:
        """All constraints, in the order in which every trial sets them."""
        slices = sorted({probe.slice for probe in self.probes})
        return (*(f"quality:{name}" for name in slices), *(f"slo:{name}" for name in sorted(self.spec.slos)))

    def load(self, window: str, time_scale: float) -> Load:
        """The traffic of a window, so many times faster than recorded."""
        trace = self.windows[window]
        return Load(trace.requests, trace.span, window, time_scale, self.spec.traffic.drain_timeout)


def make_plan(spec: StudySpec) -> Plan:
    """Read and check all that the study file names. Raises ValueError: one line naming the key or the file."""
    for key, directory in (
        ("model", spec.model), *(("models", path) for path in spec.models), ("draft_model", spec.draft_model)
    ):  # fmt: skip
        if directory is not None and not (directory / "config.json").is_file():
            raise ValueError(f"{key}: {directory}: expected a checkpoint directory with config.json")
    for key in ("model", "draft_model"):
        if key in spec.engine.settings:
            raise ValueError(f"engine.settings.{key}: expected {key}: of the study file itself")
    _check_models(spec)
    space = _space(spec)
    trace = load_trace(spec.traffic.trace, seed=spec.seed, vocab_size=_vocab_size(spec.model))
    windows = _windows(spec, trace)
    _check_classes(spec, windows)
    baseline = _baseline(spec, space)
    probes = screened(load_probes(spec.quality.probes)) if spec.quality.probes is not None else ()
    probes += production_probes(windows["tune"], spec.quality.production_sample, spec.seed, _longest_prompt(spec))
    check_slices(probes, str(spec.quality.probes))
    _check_floors(spec, probes)
    _check_recall(spec, probes)
    return Plan(
        spec=spec,
        space=space,
        windows=windows,
        probes=probes,
        baseline=baseline,
        hashes=_hashes(spec),
        trace_provenance=trace.provenance,
    )


def _check_models(spec: StudySpec) -> None:
    """One probe and one trace must be the same tokens to all that may serve."""
    named = [spec.model, *spec.models]
    for number, path in enumerate(spec.models):
        if path in named[: number + 1]:
            raise ValueError(f"models: {path}: named twice")
        if _vocab_size(path) != _vocab_size(spec.model):
            raise ValueError(f"models: {path}: has another vocabulary than {spec.model}; expected the same tokenizer")
        files = [directory / "tokenizer.json" for directory in (spec.model, path)]
        if all(file.is_file() for file in files) and file_hash(files[0]) != file_hash(files[1]):
            raise ValueError(f"models: {files[1]}: differs from {files[0]}; expected the same tokenizer")


def _vocab_size(model: Path) -> int:
    """Tokens that a trace of mere lengths may draw its prompts from."""
    return _model_number(model, "vocab_size")


def _longest_prompt(spec: StudySpec) -> int:
    """Tokens of a prompt that every model can answer."""
    limit = spec.engine.settings.get("max_model_len") or min(
        _model_number(model, "max_position_embeddings") for model in (spec.model, *spec.models)
    )
    return int(limit) - ANSWER_TOKENS


def _model_number(model: Path, name: str) -> int:
    try:
        number = json.loads((model / "config.json").read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError, TypeError):
        number = None
    if not isinstance(number, int):
        raise ValueError(f"model: {model / 'config.json'}: expected JSON with a {name}")
    return number


def _space(spec: StudySpec) -> SearchSpace:
    """The search space, and the model where there are several; without a draft model only ngram has a depth to
    search."""
    space = load_space(spec.search_space)
    if "model" in space.parameters:
        raise ValueError("search_space: model: expected the checkpoints under models: in the study file")
    if spec.models:
        choices = ChoiceParameter((str(spec.model), *(str(path) for path in spec.models)))
        space = SearchSpace({"model": choices, **space.parameters})
    if "synthetic_acceptance" in {*space.parameters, *spec.engine.settings}:
        raise ValueError(
            "synthetic_acceptance: text made with it is not the model's; a study would measure its quality"
        )
    for name in space.parameters:
        if name in spec.engine.settings:
            raise ValueError(f"engine.settings.{name}: fixed here and varied by the search space; expected one of both")
    if spec.draft_model is not None or spec.engine.settings.get("speculative_method") == "ngram":
        return space
    method = space.parameters.get("speculative_method")
    if isinstance(method, ChoiceParameter) and "ngram" in method.choices:
        return space.without_choice("speculative_method", "draft_model")
    return space.without("num_speculative_tokens")


def _baseline(spec: StudySpec, space: SearchSpace) -> dict[str, Any]:
    values = {**adapters.default_values(tuple(space.parameters)), **spec.engine.baseline}
    values |= {"model": str(spec.model)} if spec.models else {}
    for name, one in space.parameters.items():
        adapters.check_values(name, one.choices if isinstance(one, ChoiceParameter) else (one.low, one.high))
    try:
        knobs = space.active(values)
    except ValueError as error:
        raise ValueError(f"engine.baseline: {error}") from None
    try:
        adapters.engine_config(config_of(spec, knobs))
    except ConfigRejected as error:
        raise ValueError(f"engine.settings or engine.baseline: {error}") from None
    return knobs


def _windows(spec: StudySpec, trace: Trace) -> dict[str, Trace]:
    traffic = spec.traffic
    windows: dict[str, Trace] = {"tune": trace}
    for name, window in (("tune", traffic.tune_window), ("holdout", traffic.holdout_window)):
        if window is None:
            continue
        try:
            windows[name] = trace.window(*window)
        except ValueError as error:
            raise ValueError(f"traffic.{name}_window: {error}") from None
    for name, cut in windows.items():
        if cut.span <= 0:
            raise ValueError(f"{traffic.trace}: the {name} window spans no time; give traffic.{name}_window in seconds")
    if traffic.holdout_window is not None:
        tuned = traffic.tune_window or (0.0, trace.span)
        if tuned[0] < traffic.holdout_window[1] and traffic.holdout_window[0] < tuned[1]:
            raise ValueError(
                f"traffic.holdout_window: {list(traffic.holdout_window)} overlaps the tuning window {list(tuned)}; "
                "what was tuned on proves nothing"
            )
    return windows


def _check_classes(spec: StudySpec, windows: Mapping[str, Trace]) -> None:
    known = ", ".join(spec.slos)
    for name, trace in windows.items():
        for slo_class in trace.slo_classes:
            if slo_class not in spec.slos:
                raise ValueError(f"slos: the {name} window has class {slo_class!r}, slos only {known}")
    if spec.tail.slo_class not in windows["tune"].slo_classes:
        raise ValueError(f"tail.slo_class: no request of class {spec.tail.slo_class!r} in the tune window")


def _check_floors(spec: StudySpec, probes: Sequence[Probe]) -> None:
    """A floor for a slice that no probe has would be ignored in silence."""
    slices = sorted({probe.slice for probe in probes})
    for name in spec.quality.floors:
        if name not in slices:
            near = difflib.get_close_matches(name, slices, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the probes have {', '.join(slices)}"
            where = spec.quality.probes or "the production sample"
            raise ValueError(f"quality.floors.{name}: no probe of {where} has this slice; {hint}")


def _check_recall(spec: StudySpec, probes: Sequence[Probe]) -> None:
    """A floor that not even faultless answers could prove would make every configuration infeasible."""
    for name, count in Counter(
        probe.slice for probe in probes if probe.kind == "recall" and probe.gate <= FULL
    ).items():
        floor = floor_of(spec, name).min_recall
        if proportion_lower(count, count) < floor:
            raise ValueError(
                f"{spec.quality.probes}: slice {name!r} has {count} recall probes, too few to prove min_recall "
                f"{floor:g} at 95 % even if all are right (0.9 needs 29); add probes or lower quality.floors"
            )


def _hashes(spec: StudySpec) -> dict[str, str]:
    files = {"traffic.trace": spec.traffic.trace}
    if spec.quality.probes is not None:
        files["quality.probes"] = spec.quality.probes
    hashes = {key: file_hash(path) for key, path in files.items()} | {"model": model_hash(spec.model)}
    hashes |= {f"models.{number}": model_hash(path) for number, path in enumerate(spec.models)}
    return hashes | ({} if spec.draft_model is None else {"draft_model": model_hash(spec.draft_model)})
