"""Deploy files: a measured configuration in the words of the engine that will serve it.

Every EngineConfig field has one row per foreign target that says how well it carries over: exact, approximate, or
none (vllm_flags.py).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.config import EngineConfig, knobs, parse_config
from tuner.serving.config import ServingConfig
from tuner.serving.vllm_flags import VLLM, vllm_fixed

TARGETS = ("engine", "vllm")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the configuration comes from; goes into the header of each file. date: as the caller writes it."""

    study: str
    trial: int
    date: str


def export(target: str, config: ServingConfig, *, out: Path, model_name: str, provenance: Provenance) -> list[Path]:
    """Write the files of `target` ("engine", "vllm") into the directory `out` and return their paths.

    model_name: the name clients ask for, where the target can set it. Raises ValueError for an unknown target, for
    values that are no EngineConfig, and when the model's longest sequence cannot be read (vllm).
    """
    if target not in TARGETS:
        near = difflib.get_close_matches(target, TARGETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(TARGETS)}"
        raise ValueError(f"--to {target}: unknown export target{hint}")
    engine_config = _absolute(parse_config(config.values, source=f"configuration {config.fingerprint}"))
    header = _header(config, provenance)
    if target == "engine":
        text = "".join(_engine_lines(engine_config, header, frozenset(config.knobs)))
    else:
        text = "".join(_vllm_lines(engine_config, header, model_name))
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{target}.yaml"
    path.write_text(text, encoding="utf-8")
    return [path]


def _absolute(config: EngineConfig) -> EngineConfig:
    """Model directories from the current directory, so that the file may be moved."""
    draft = None if config.draft_model is None else str(Path(config.draft_model).absolute())
    return config.model_copy(update={"model": str(Path(config.model).absolute()), "draft_model": draft})


def _comment(text: str) -> str:
    """`text` as one comment line, whatever characters it holds."""
    return "# " + "".join(c if c.isprintable() else " " for c in text) + "\n"


def _header(config: ServingConfig, provenance: Provenance) -> str:
    return _comment(
        f"servetune: study {provenance.study}, trial {provenance.trial}, configuration {config.fingerprint}, "
        f"{provenance.date}"
    )


def _entry(key: str, value: Any) -> str:
    # ASCII only: PyYAML writes U+0085 unquoted otherwise, and reads it back as a space.
    return yaml.safe_dump({key: value}, default_flow_style=False, allow_unicode=False, width=math.inf)


def _engine_lines(config: EngineConfig, header: str, tuned: frozenset[str]) -> Iterator[str]:
    yield header
    yield _comment("Run: python -m engine --config engine.yaml --port 8000")
    yield _comment("Every setting is written out, so that a later default changes nothing.")
    for knob in knobs():
        origin = "tuned" if knob.name in tuned else "fixed in the study"
        yield "\n" + _comment(f"{knob.unit}; {origin}. {knob.description}")
        yield _entry(knob.name, getattr(config, knob.name))


def _vllm_lines(config: EngineConfig, header: str, model_name: str) -> Iterator[str]:
    yield header
    yield _comment("Run: vllm serve --config vllm.yaml --host 127.0.0.1 --port 8000")
    yield _comment("Measured on servetune's engine, not on vLLM: exact means the same setting, not the same speed.")
    yield "\n" + _comment("served-model-name: the name that clients ask for")
    yield _entry("served-model-name", model_name)
    for row in VLLM:
        mapped = row.rule(config)
        flag = f"--{row.flag}" if row.flag else "no flag"
        yield "\n" + _comment(f"{row.knob} -> {flag}: {mapped.fit}. {mapped.note}")
        if mapped.value is not None:
            assert row.flag is not None
            yield _entry(row.flag, mapped.value)
    for flag, note in vllm_fixed(config).items():
        yield "\n" + _comment(f"{flag}: {note}")
        yield _entry(flag, True)
