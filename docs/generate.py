"""Writes docs/engine-config.md from EngineConfig: python docs/generate.py (a test holds the two together)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.config import Knob, knobs

PAGE = Path(__file__).with_name("engine-config.md")
HEAD = """# Settings of the engine

Generated from `engine/config.py` by `python docs/generate.py`. Cost: `hot` takes effect at the next step, `cache`
rebuilds the KV pool (weights stay loaded), `process` needs a new process.

| setting | default | unit | range | cost | meaning |
|---|---|---|---|---|---|
"""


def render() -> str:
    """The whole page."""
    return HEAD + "".join(_row(knob) for knob in knobs())


def _row(knob: Knob) -> str:
    default = "required" if knob.name == "model" else f"`{'none' if knob.default is None else knob.default}`"
    return (
        f"| `{knob.name}` | {default} | {knob.unit} | {_range(knob.json_schema)} | {knob.cost} | {knob.description} |\n"
    )


def _range(schema: dict[str, Any]) -> str:
    options = [o for o in schema.get("anyOf", [schema]) if o.get("type") != "null"]
    [kind] = options
    if "enum" in kind:
        return ", ".join(map(str, kind["enum"]))
    low, high = kind.get("minimum"), kind.get("maximum")
    if low is None:
        return "-"
    return f"{low} … {high}" if high is not None else f">= {low}"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
