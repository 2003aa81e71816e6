"""Ends a replay whose SLOs are out of reach, so that the budget goes to configurations that may meet them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tuner.scoring.slo import SLO, is_good
from tuner.traffic.exchange import expected_tokens
from tuner.traffic.replay import Progress, Stop
from tuner.traffic.trace import Request

SLO_UNREACHABLE = "slo_unreachable"
MARGIN = 0.3
"""How far below its target the best attainable attainment of a class must lie. A replay that would miss narrowly runs
to its end: there the size of the miss tells the sampler something, while a stopped one only counts as far away."""


def slo_unreachable(
    requests: Sequence[Request], slos: Mapping[str, SLO], time_scale: float, margin: float = MARGIN
) -> Stop:
    """A predicate for replay(): the reason SLO_UNREACHABLE once, even if every open request turned out good, some
    class would stay `margin` below its attainment; with 0, once it would miss it."""
    offered: dict[str, int] = {}
    for request in requests:
        offered[request.slo_class] = offered.get(request.slo_class, 0) + 1
    # In binary 1 - 0.8 + 0.3 is a little below 0.5.
    allowed = {name: (1 - slos[name].attainment + margin) * count + 1e-9 for name, count in offered.items()}
    deadlines = {r.id: r.arrival / time_scale + good_until(r, slos[r.slo_class]) for r in requests}
    # When a later turn of a session is due is not known before the turn before it has ended.
    deadlines |= dict.fromkeys(later_turns(requests), math.inf)
    classes = {request.id: request.slo_class for request in requests}
    bad = dict.fromkeys(offered, 0)
    judged = 0

    def stop(progress: Progress) -> str | None:
        nonlocal judged
        for record in progress.records[judged:]:
            deadlines.pop(record.request_id)
            bad[record.slo_class] += not is_good(record, slos[record.slo_class])
        judged = len(progress.records)
        if progress.offered == progress.total:
            return None  # what is left is short, and its end tells how far from the SLO the configuration is
        late = dict.fromkeys(offered, 0)
        for request_id, deadline in deadlines.items():
            late[classes[request_id]] += progress.elapsed > deadline
        return SLO_UNREACHABLE if any(bad[name] + late[name] > allowed[name] for name in offered) else None

    return stop


def later_turns(requests: Sequence[Request]) -> set[str]:
    """Ids of the requests that wait for the end of another: all turns of a session but its first."""
    begun: set[str] = set()
    later = set()
    for request in sorted(requests, key=lambda request: request.arrival):
        if request.session is None:
            continue
        if request.session in begun:
            later.add(request.id)
        begun.add(request.session)
    return later


def good_until(request: Request, slo: SLO) -> float:
    """Seconds after its arrival at which a request without an end can no longer be good; infinite if unknowable."""
    bounds = [slo.e2e if slo.e2e is not None else math.inf]
    longest_gap = slo.itl if slo.itl_quantile is None else None
    per_token = min(bound for bound in (slo.tpot, longest_gap, math.inf) if bound is not None)
    tokens = expected_tokens(request)
    known = slo.ttft_per_1k_prompt_tokens is None or request.prompt_tokens is not None
    ttft = slo.ttft_bound(request.prompt_tokens) if known else None
    if ttft is not None and tokens is not None and per_token < math.inf:
        bounds.append(ttft + per_token * (tokens - 1))
    return min(bounds)
