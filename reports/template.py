"""Pages as single files that need no network and run nothing but their own two scripts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from reports import text

_HERE = Path(__file__).parent


def render(template: str, content: Mapping[str, Any]) -> str:
    """The page of a template that extends base.html.jinja; everything in `content` is escaped."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=text.number, plain=text.plain, seconds=text.seconds, percent=text.percent,
        percent_interval=text.percent_interval, interval=text.interval, knob_value=text.knob_value,
        figure_json=_figure_json, data_json=_data_json, kind=lambda part: type(part).__name__,
    )  # fmt: skip
    scripts = {"plotly_js": get_plotlyjs(), "page_js": (_HERE / "page.js").read_text(encoding="utf-8")}
    return environment.get_template(template).render(
        **content,
        **{name: Markup(source) for name, source in scripts.items()},
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script_hashes=[_hash(source) for source in scripts.values()],
    )


def _hash(source: str) -> str:
    """The source expression that lets a Content-Security-Policy run this inline script and no other."""
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _figure_json(figure: go.Figure) -> Markup:
    written = figure.to_json()
    assert written is not None
    return _inert(written)


def _data_json(data: Any) -> Markup:
    return _inert(json.dumps(data, allow_nan=False))


def _inert(written: str) -> Markup:
    """JSON that is safe inside a script element: without "<" nothing can close it."""
    return Markup(written.replace("<", "\\u003c"))
