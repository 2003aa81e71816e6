"""Prometheus rules for "tune again when …", on the metric names of our engine and of vLLM.

Format: https://prometheus.io/docs/prometheus/latest/configuration/recording_rules/ (rule_group, rule).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

WINDOW = "1h"
"""Over which live traffic is counted."""
LASTING = "30m"
"""Drift that does not last is no reason to tune."""
FEWEST_REQUESTS = 1000
FEWEST_TOKENS = 1000
"""Guessed or looked-up tokens in WINDOW, below which a share says little."""
LEAST_SHARE = 0.05
"""Of the tuning window's requests, in each bin of a length rule; neighbours are taken together until they have it."""
NO_SHARE = 0.0001
"""Where live traffic has nothing in a bin."""
ENGINES = {"engine": "servetune", "vllm": "vllm"}
"""Export target -> prefix of its metrics. The names behind it are vLLM's."""


@dataclass(frozen=True, slots=True)
class LengthBins:
    """edges: upper bounds in tokens that are bounds of the engines' buckets. counts: one more, the last beyond all."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]
    limit: float


@dataclass(frozen=True, slots=True)
class Limits:
    """held_rate: requests/s. prompt, output: lengths, None where unknown. least_acceptance: share of guessed tokens.
    hits: share of prompt tokens found in the prefix cache, and by how much it may move."""

    held_rate: float
    prompt: LengthBins | None = None
    output: LengthBins | None = None
    least_acceptance: float | None = None
    hits: tuple[float, float] | None = None


def alerts(limits: Limits, engines: Sequence[str], labels: Mapping[str, str]) -> str:
    """A rule file with a group for each of `engines` (keys of ENGINES). labels: of every alert, such as the study."""
    groups = [_group(limits, ENGINES[engine], labels) for engine in engines]
    return yaml.safe_dump({"groups": groups}, sort_keys=False, allow_unicode=False, width=math.inf)


def _group(limits: Limits, prefix: str, labels: Mapping[str, str]) -> dict[str, Any]:
    rules = [_rate(limits.held_rate, prefix)]
    for what, metric, bins in (
        ("prompt", "request_prompt_tokens", limits.prompt),
        ("output", "request_generation_tokens", limits.output),
    ):
        if bins is not None:
            rules += _lengths(what, f"{prefix}:{metric}", _merged(bins))
    if limits.least_acceptance is not None:
        accepted, drafted = (f"{prefix}:spec_decode_num_{word}_tokens_total" for word in ("accepted", "draft"))
        rules.append(_share_below("Acceptance", accepted, drafted, limits.least_acceptance))
    if limits.hits is not None:
        rules.append(_hits(prefix, *limits.hits))
    for rule in rules:
        if "alert" in rule:
            rule["labels"] = {"severity": "info", **labels}
    return {"name": f"{prefix}-retune", "rules": rules}


def _alert(name: str, expression: str, summary: str, lasting: str = LASTING) -> dict[str, Any]:
    return {
        "alert": f"Retune{name}",
        "expr": expression,
        "for": lasting,
        "labels": {},
        "annotations": {
            "summary": summary,
            "description": "Measured: {{ $value }}. Ask `tune verify` with recent traffic.",
        },
    }


def _rate(held: float, prefix: str) -> dict[str, Any]:
    """Refused requests arrive too; a series that does not exist would make the sum empty."""
    arrived = f"sum(rate({prefix}:request_success_total[10m]))"
    if prefix == ENGINES["engine"]:
        arrived += f" + (sum(rate({prefix}:request_refused_total[10m])) or vector(0))"
    summary = f"Requests arrive faster than the {held:.4g}/s that the configuration was shown to hold."
    return _alert("Rate", f"{arrived} > {held:.6g}", summary, "10m")


def _lengths(what: str, metric: str, bins: LengthBins) -> list[dict[str, Any]]:
    total = sum(bins.counts)
    live, terms, below = f"sum(increase({metric}_count[{WINDOW}]))", [], ""
    for index, count in enumerate(bins.counts):
        upto = live
        if index < len(bins.edges):
            upto = f'sum(increase({metric}_bucket{{le="{float(bins.edges[index])}"}}[{WINDOW}]))'
        found = f"clamp_min(({upto}{below}) / {live}, {NO_SHARE:f})"
        tuned = f"{max(count / total, NO_SHARE):.6f}"
        terms.append(f"({found} - {tuned}) * ln({found} / {tuned})")
        below = f" - {upto}"
    record = f"{metric.partition(':')[0]}:retune_{what}_length_psi:{WINDOW}"
    summary = f"{what.title()} lengths are not those that the configuration was tuned on (PSI above {bins.limit:.2g})."
    return [
        {"record": record, "expr": " + ".join(terms)},
        _alert(f"{what.title()}Lengths", f"{record} > {bins.limit:.4g} and {live} > {FEWEST_REQUESTS}", summary),
    ]


def _merged(bins: LengthBins) -> LengthBins:
    """Neighbouring bins taken together until each holds LEAST_SHARE of the requests; one that holds nearly all of them
    keeps its two bounds."""
    edges, counts, held, total = list[int](), list[int](), 0, sum(bins.counts)
    for index, count in enumerate(bins.counts):
        held += count
        rest = sum(bins.counts[index + 1 :])
        if index < len(bins.edges) and min(held, rest) >= LEAST_SHARE * total:
            edges.append(bins.edges[index])
            counts.append(held)
            held = 0
    if not edges:
        fullest = bins.counts.index(max(bins.counts))
        edges = [*bins.edges[max(fullest - 1, 0) : fullest + 1]]
        counts = [0] * len(edges)
        counts.insert(min(fullest, 1), total)
        return LengthBins(tuple(edges), tuple(counts), bins.limit)
    return LengthBins(tuple(edges), (*counts, held), bins.limit)


def _share_below(name: str, part: str, whole: str, least: float) -> dict[str, Any]:
    ratio, enough = _ratio(part, whole)
    summary = f"Fewer than {least:.0%} of guessed tokens are accepted: guessing may cost more than it brings."
    return _alert(name, f"{ratio} < {least:.4f} and {enough}", summary)


def _hits(prefix: str, share: float, points: float) -> dict[str, Any]:
    ratio, enough = _ratio(f"{prefix}:prefix_cache_hits_total", f"{prefix}:prefix_cache_queries_total")
    summary = f"Prompts share another part of their tokens than the {share:.0%} that the configuration was tuned on."
    return _alert("PrefixSharing", f"abs({ratio} - {share:.4f}) > {points:.4f} and {enough}", summary)


def _ratio(part: str, whole: str) -> tuple[str, str]:
    counted = f"sum(increase({whole}[{WINDOW}]))"
    return f"sum(increase({part}[{WINDOW}])) / {counted}", f"{counted} > {FEWEST_TOKENS}"
