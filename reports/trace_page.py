"""The page of a trace: what `tune trace inspect` prints, with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reports import text, trace_arrivals, trace_lengths
from reports.template import render
from tuner.traffic.inspection import Inspection

SHOWN_GROUPS = 50


def write_trace_page(found: Inspection, path: Path) -> None:
    """Write the page of a trace to `path`, replacing it. Raises OSError when it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render("trace.html.jinja", _content(found)), encoding="utf-8")


def _content(found: Inspection) -> dict[str, Any]:
    rates, gaps, lengths = trace_arrivals.rates_info(found), trace_arrivals.gaps_info(found), trace_lengths.info(found)
    return {
        "trace": found,
        "verdict": verdict(found),
        "rates": (rates, trace_arrivals.plot_rates(rates)) if rates else None,
        "gaps": (gaps, trace_arrivals.plot_gaps(gaps)) if gaps else None,
        "lengths": tuple((row, trace_lengths.plot(row)) for row in lengths),
        "length_rows": tuple((name, row) for name, row in (("prompt", found.prompt), ("answer", found.output)) if row),
        "groups": (("class", found.classes[:SHOWN_GROUPS]), ("tenant", found.tenants[:SHOWN_GROUPS])),
        "hidden_tenants": max(0, len(found.tenants) - SHOWN_GROUPS),
        "facts": tuple(text.flat(found.provenance)),
    }


def verdict(found: Inspection) -> str:
    """Rate and burstiness in a sentence."""
    arrivals = found.arrivals
    told = f"{arrivals.requests:,} requests over {text.number(arrivals.span)} s"
    if arrivals.rate is not None:
        told += f", {text.number(arrivals.rate)} a second"
    ten = next((one for one in arrivals.dispersion if one.bin_seconds == 10), None)
    if ten is None:
        return told
    if ten.index > 2:
        return f"{told}, burstier than independent users"
    return f"{told}, more regular than independent users" if ten.index < 0.5 else f"{told}, as from independent users"
