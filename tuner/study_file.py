"""A study file to begin with: model, traffic and preset -> commented YAML that `tune run` takes as it is."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuner.traffic.trace import Trace

PRODUCTION_SAMPLE = 64
"""Recorded requests on which answers are compared: a 95 % bound of some 0.01 nats on most models."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Bounds in seconds for every SLO class, the tail to watch, and what they suppose."""

    slo: dict[str, float]
    tail: str
    about: str


PRESETS = {
    "chat": Preset({"ttft": 0.5, "tpot": 0.05, "attainment": 0.95}, "ttft", "somebody reads along as it is written"),
    "rag": Preset(
        {"ttft": 2.0, "tpot": 0.05, "attainment": 0.95}, "ttft", "long prompts; somebody waits for the start"
    ),
    "code": Preset({"ttft": 0.3, "e2e": 1.5, "attainment": 0.95}, "e2e", "short completions in an editor"),
    "batch": Preset({"e2e": 600.0, "attainment": 0.99}, "e2e", "nobody waits; all must end in time"),
}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a study begins with. probes: JSONL, None where there are none of one's own."""

    name: str
    model: Path
    trace_file: Path
    trace: Trace
    preset: str
    draft_model: Path | None = None
    probes: Path | None = None
    trials: int = 24


def study_file(inputs: Inputs, directory: Path) -> str:
    """The text of a study file that is to lie in `directory`. Raises ValueError for an unknown preset or no model."""
    check_preset(inputs.preset)
    check_model(inputs.model)
    if inputs.trace.span <= 0:
        raise ValueError(f"--trace {inputs.trace_file}: spans no time; a replay needs arrivals")
    return "".join(_sections(inputs, PRESETS[inputs.preset], directory))


def check_preset(preset: str) -> None:
    """Raises ValueError with the nearest of PRESETS."""
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(PRESETS)}"
        raise ValueError(f"--preset {preset}: unknown; {hint}")


def check_model(model: Path) -> None:
    """Raises ValueError unless it looks like a checkpoint."""
    if not (model / "config.json").is_file():
        raise ValueError(f"--model {model}: expected a checkpoint directory with config.json")


def study_name(text: str) -> str:
    """A name that a study may have, from any text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64] or "study"


def _sections(inputs: Inputs, preset: Preset, directory: Path) -> Iterator[str]:
    classes = Counter(request.slo_class for request in inputs.trace.requests)
    half, end = round(inputs.trace.span / 2, 3), round(inputs.trace.span, 3)
    yield _comment(f"A study of {len(inputs.trace.requests)} requests over {end:.0f} s. Run: tune run THIS FILE")
    yield _comment("Paths are relative to this file. Every key: docs/study-file.md")
    yield _entry("name", inputs.name)
    yield _entry("model", _relative(inputs.model, directory))
    if inputs.draft_model is not None:
        yield _comment("Guesses tokens for speculative decoding; the same tokenizer as the model.")
        yield _entry("draft_model", _relative(inputs.draft_model, directory))
    yield "\n" + _comment("What the study does not vary (docs/engine-config.md), and the configuration to beat.")
    yield _entry("engine", {"settings": {"kv_cache_memory_bytes": 256 * 2**20}, "baseline": {}})
    yield "\n" + _comment("The first half of the recording is tuned on, the second is held out to check the winner.")
    yield _comment(
        "time_scale auto: each trial as much faster than recorded as it holds its SLOs; or a number, as 1.0."
    )
    traffic = {
        "trace": _relative(inputs.trace_file, directory),
        "tune_window": [0, half],
        "holdout_window": [half, end],
    }
    yield _entry("traffic", {**traffic, "time_scale": "auto"})
    yield "\n" + _comment(f"Preset {inputs.preset}: {preset.about}. Put in what you have promised your users.")
    yield _comment("Seconds; attainment: the share of requests that must meet every bound at once.")
    yield _entry("slos", {name: dict(preset.slo) for name in sorted(classes)})
    yield "\n" + _comment("Answers may not become worse than the full-precision model's.")
    yield _comment("production_sample: recorded requests on which both are compared. max_nll_increase: nats per token.")
    probes = {} if inputs.probes is None else {"probes": _relative(inputs.probes, directory)}
    floor = {"max_nll_increase": 0.02, "min_recall": 0.9}
    yield _entry("quality", {**probes, "production_sample": PRODUCTION_SAMPLE, "default_floor": floor})
    yield "\n" + _comment("What may be varied (tune space show). Delete a line to leave a knob at its default.")
    yield _entry("search_space", _search_space(inputs))
    yield "\n" + _comment("The latency objective beside goodput and quality.")
    yield _entry("tail", {"slo_class": classes.most_common(1)[0][0], "metric": preset.tail, "percentile": 95})
    yield "\n" + _comment("More trials later: raise it, then tune resume with this file.")
    yield _entry("budget", {"trials": inputs.trials, "startup_trials": max(1, inputs.trials // 3), "finalists": 2})


def _search_space(inputs: Inputs) -> dict[str, Any]:
    """The knobs that most often decide; speculation only where there is a draft model to guess."""
    parameters: dict[str, Any] = {
        "max_num_seqs": {"type": "int", "low": 4, "high": 64, "log": True},
        "max_num_batched_tokens": {"type": "int", "low": 128, "high": 2048, "log": True},
        "prefill_chunk_size": {"type": "choice", "choices": [None, 64, 128, 256]},
        "kv_cache_dtype": {"type": "choice", "choices": ["auto", "fp8_e4m3", "int8"]},
        "kv_window": {"type": "choice", "choices": [None, 512, 1024]},
    }
    if inputs.draft_model is not None:
        parameters["num_speculative_tokens"] = {"type": "int", "low": 0, "high": 4}
    return {"parameters": parameters}


def _relative(path: Path, directory: Path) -> str:
    return os.path.relpath(path.absolute(), directory.absolute())


def _comment(text: str) -> str:
    return f"# {text}\n"


def _entry(key: str, value: Any) -> str:
    # None: the innermost mappings and lists on one line, which is how people write search spaces.
    flow = None if isinstance(value, dict) else False
    return yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=False, width=118, default_flow_style=flow)
