"""Ends a replay whose SLOs are out of reach, so that the budget goes to configurations that may meet them.

Three reasons, each sure enough to be told what it is worth: no continuation can help (certain), the share of good
requests is too low (a sequential test with a stated error rate), the server falls further and further behind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tuner.scoring.saturation import growth
from tuner.scoring.sequential import ERROR_RATE, evidence_below
from tuner.scoring.slo import SLO, is_good
from tuner.traffic.exchange import expected_tokens
from tuner.traffic.replay import Progress, Stop
from tuner.traffic.trace import Request, RequestRecord

SLO_UNREACHABLE = "slo_unreachable"
SLO_IMPLAUSIBLE = "slo_implausible"
OVER_SATURATED = "over_saturated"
MARGIN = 0.3
"""How far below its target the best attainable attainment of a class must lie. A replay that would miss narrowly runs
to its end: there the size of the miss tells the sampler something, while a stopped one only counts as far away."""
WINDOW = 0.5
"""Share of the replay over which growth is looked at."""
GROWTH_SHARE = 0.1
"""Share of the arrivals that must stay behind for the server to count as over-saturated."""
COMING_SHARE = 0.8
"""What is still to come must arrive at this share of the rate in the window, or the server may catch up."""


def hopeless(requests: Sequence[Request], slos: Mapping[str, SLO], time_scale: float) -> Stop:
    """A predicate for replay(): the first of the three reasons that holds, with its evidence."""
    reasons = (
        slo_unreachable(requests, slos, time_scale),
        slo_implausible(requests, slos, time_scale),
        over_saturated(requests, slos, time_scale),
    )

    def stop(progress: Progress) -> str | None:
        return next((found for reason in reasons if (found := reason(progress)) is not None), None)

    return stop


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


def slo_implausible(requests: Sequence[Request], slos: Mapping[str, SLO], time_scale: float) -> Stop:
    """A predicate for replay(): SLO_IMPLAUSIBLE with its evidence once the share of good requests of some class is
    proven to be more than MARGIN below its attainment.

    Requests are judged in the order of their arrival, each when it has ended or can no longer be good, and none before
    those ahead of it: quick answers end first, and would speak for all. Wrong about no more than ERROR_RATE of the
    replays whose share is at the margin; see sequential for which correlations.
    """
    followers = later_turns(requests)
    order: dict[str, list[Request]] = {}
    for request in sorted(requests, key=lambda request: request.arrival):
        if request.id not in followers and slos[request.slo_class].attainment > MARGIN:
            order.setdefault(request.slo_class, []).append(request)
    ended: dict[str, bool] = {}
    outcomes: dict[str, list[bool]] = {name: [] for name in order}
    judged = 0

    def resolved(request: Request, elapsed: float) -> bool | None:
        late = elapsed > request.arrival / time_scale + good_until(request, slos[request.slo_class])
        return ended.get(request.id, False if late else None)

    def stop(progress: Progress) -> str | None:
        nonlocal judged
        for record in progress.records[judged:]:
            ended[record.request_id] = is_good(record, slos[record.slo_class])
        judged = len(progress.records)
        if progress.offered == progress.total:
            return None
        for name, waiting in order.items():
            known = outcomes[name]
            while len(known) < len(waiting):
                outcome = resolved(waiting[len(known)], progress.elapsed)
                if outcome is None:
                    break
                known.append(outcome)
            floor = slos[name].attainment - MARGIN
            evidence = evidence_below(known, floor)
            if evidence >= len(order) / ERROR_RATE:
                return (
                    f"{SLO_IMPLAUSIBLE}: class {name}: {sum(known)} of the first {len(known)} requests were good; "
                    f"e-value {evidence:.0f} against a share of {floor:g}, {len(order) / ERROR_RATE:.0f} needed"
                )
        return None

    return stop


def over_saturated(requests: Sequence[Request], slos: Mapping[str, SLO], time_scale: float) -> Stop:
    """A predicate for replay(): OVER_SATURATED with its evidence when over the last WINDOW of the replay the requests
    in flight and TTFT both grew (see saturation), by more than GROWTH_SHARE of the arrivals and to beyond every TTFT
    bound, and what is to come will not be much less."""
    arrivals = sorted(request.arrival / time_scale for request in requests)
    window = WINDOW * arrivals[-1]
    bound = max((slo.ttft or 0.0 for slo in slos.values()), default=0.0)
    times: list[float] = []
    in_flight: list[float] = []

    def rate(start: float, end: float) -> float:
        return sum(start <= arrival < end for arrival in arrivals) / max(end - start, 1e-9)

    def stop(progress: Progress) -> str | None:
        now = progress.elapsed
        times.append(now)
        in_flight.append(progress.offered - progress.finished)
        if now < window or progress.offered == progress.total:
            return None
        queue = growth(times, in_flight, now - window, now)
        begun = [record for record in progress.records if record.token_times]
        wait = growth([r.token_times[-1] for r in begun], [_ttft(r) for r in begun], now - window, now)
        offered, coming = rate(now - window, now), rate(now, arrivals[-1])
        if queue is None or wait is None or queue.low <= GROWTH_SHARE * offered or wait.low <= 0:
            return None
        if wait.last <= bound or coming < COMING_SHARE * offered:
            return None
        in_words = f"in flight +{queue.slope:.2f}/s ({queue.low:.2f} to {queue.high:.2f}) to {queue.last:.0f}"
        waited = f"TTFT +{wait.slope:.2f} s/s ({wait.low:.2f} to {wait.high:.2f}) to {wait.last:.2f} s"
        return f"{OVER_SATURATED}: over {window:.1f} s at {offered:.1f} arrivals/s: {in_words}, {waited} (95 %)"

    return stop


def _ttft(record: RequestRecord) -> float:
    return record.token_times[0] - record.scheduled


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
