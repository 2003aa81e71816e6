"""How long prompts and answers are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from reports.style import BLUE, GREEN, figure
from tuner.traffic.inspection import Inspection

BINS = 50
PROMPT, ANSWER = "prompt", "answer"
COLOURS = {PROMPT: BLUE, ANSWER: GREEN}


@dataclass(frozen=True, slots=True)
class Histogram:
    """Lengths in bins about equal in logarithm. edges: tokens, one more than counts; whole numbers minus a half."""

    what: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]


def info(found: Inspection) -> tuple[Histogram, ...]:
    """Prompts and answers; answers only where a request tells one."""
    prompts = [one.prompt_tokens for one in found.requests]
    answers = [one.output_tokens for one in found.requests if one.output_tokens is not None]
    return tuple(_histogram(what, values) for what, values in ((PROMPT, prompts), (ANSWER, answers)) if values)


def _histogram(what: str, lengths: Sequence[int]) -> Histogram:
    values = np.maximum(lengths, 1)
    edges = np.unique(np.ceil(np.geomspace(values.min(), values.max() + 1, BINS + 1)))
    edges = np.append(edges, edges[-1] + 1) - 0.5  # one bin where all are equal
    return Histogram(what, tuple(edges.tolist()), tuple(np.histogram(values, edges)[0].tolist()))


def plot(row: Histogram) -> go.Figure:
    """One histogram over a logarithmic axis."""
    shown = figure(280, bargap=0, showlegend=False)
    pairs = list(zip(row.edges, row.edges[1:], strict=False))
    told = [f"{_range(low, high)}: {n} requests" for (low, high), n in zip(pairs, row.counts, strict=True)]
    shown.add_bar(
        x=[math.sqrt(low * high) for low, high in pairs], y=row.counts, width=[high - low for low, high in pairs],
        marker={"color": COLOURS[row.what], "line": {"width": 0}}, hoverinfo="text", hovertext=told,
    )  # fmt: skip
    shown.update_xaxes(title_text=f"{row.what} tokens", type="log", exponentformat="none", dtick="D2")
    shown.update_yaxes(title_text="requests", rangemode="tozero")
    return shown


def _range(low: float, high: float) -> str:
    first, last = math.ceil(low), math.floor(high)
    return f"{first} tokens" if first == last else f"{first} to {last} tokens"
