"""engine.yaml: the file that the engine under test is launched with, and the body of the one that is deployed."""

from __future__ import annotations

import math
from typing import Any

import yaml

from engine.config import EngineConfig, knobs


def engine_file(config: EngineConfig, tuned: frozenset[str]) -> str:
    """Every setting of `config` with its unit and meaning, in the order of EngineConfig. tuned: names of those that
    the study varied. Equal configurations have equal bytes: the launch and the export both write this."""
    lines = [comment("Every setting is written out, so that a later default changes nothing.")]
    for knob in knobs():
        origin = "tuned" if knob.name in tuned else "fixed in the study"
        lines += [
            "\n",
            comment(f"{knob.unit}; {origin}. {knob.description}"),
            entry(knob.name, getattr(config, knob.name)),
        ]
    return "".join(lines)


def comment(text: str) -> str:
    """`text` as one comment line, whatever characters it holds."""
    return "# " + "".join(c if c.isprintable() else " " for c in text) + "\n"


def entry(key: str, value: Any) -> str:
    """One line of block YAML, ASCII only: PyYAML writes U+0085 unquoted otherwise, and reads it back as a space."""
    return yaml.safe_dump({key: value}, default_flow_style=False, allow_unicode=False, width=math.inf)
