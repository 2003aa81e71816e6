"""A trace in two: one part to tune on, the other held out. Sessions stay whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from msgspec import UnsetType
from msgspec.structs import replace

from tuner.traffic.trace_lines import RequestLine, TraceLines

Unit = Literal["tenant", "session"]
DRAWS = 32


def split_by_time(trace: TraceLines, cut: float) -> tuple[TraceLines, TraceLines]:
    """What begins before second `cut`, and the rest, rebased to 0.

    A session belongs to the part in which it begins. The first part therefore lasts until `cut` or until its last turn
    arrives, if that is later, and the second lacks the turns of sessions that were under way. Raises ValueError where a
    part would be empty.
    """
    begins: dict[str, float] = {}
    for line in trace.lines:
        if not isinstance(line.session, UnsetType):
            begins.setdefault(line.session, line.arrival)

    def first(line: RequestLine) -> bool:
        return (line.arrival if isinstance(line.session, UnsetType) else begins[line.session]) < cut

    early = [line for line in trace.lines if first(line)]
    late = [line for line in trace.lines if not first(line)]
    if not early or not late:
        why = "; a session belongs to the part in which it begins" if begins else ""
        raise ValueError(f"a cut at second {cut:g} of {trace.span:g} leaves a part without requests{why}")
    how = {"by": "time", "seconds": cut}
    rest = [replace(line, arrival=line.arrival - cut) for line in late]
    return (
        part(trace, early, max(cut, early[-1].arrival), "split", {**how, "part": "tune"}),
        part(trace, rest, trace.span - cut, "split", {**how, "part": "held out"}),
    )


def split_by_unit(trace: TraceLines, by: Unit, share: float, seed: int) -> tuple[TraceLines, TraceLines]:
    """About `share` of the requests and the rest, no tenant (or session) in both. Times stay: each part has its share
    of the rate. Raises ValueError where there are fewer than two to divide."""
    chosen = drawn_units(trace, by, share, seed)
    unit = unit_of(by)
    how = {"by": by, "share": share, "seed": seed}
    inside = [line for line in trace.lines if unit(line) in chosen]
    outside = [line for line in trace.lines if unit(line) not in chosen]
    return (
        part(trace, inside, trace.span, "split", {**how, "part": "tune"}),
        part(trace, outside, trace.span, "split", {**how, "part": "held out"}),
    )


def drawn_units(trace: TraceLines, by: Unit, share: float, seed: int) -> Collection[Hashable]:
    """Units drawn by seed that hold about `share` of the requests: never none, never all.

    The best of DRAWS drawings: with few units of unequal sizes a single one may be far off.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: expected a number between 0 and 1, given {share:g}")
    if by == "tenant":
        _check_sessions(trace)
    sizes = Counter(map(unit_of(by), trace.lines))
    if len(sizes) < 2:
        raise ValueError(f"the trace has only one {by}; expected at least two to divide")
    target, rng = share * len(trace.lines), np.random.default_rng(seed)
    units = sorted(sizes, key=str)
    orders = ([units[place] for place in rng.permutation(len(units))] for _ in range(DRAWS))
    drawn = [_drawn_in(order, sizes, target) for order in orders]
    return min(drawn, key=lambda kept: abs(sum(sizes[unit] for unit in kept) - target))


def _drawn_in(order: Sequence[Hashable], sizes: Mapping[Hashable, int], target: float) -> set[Hashable]:
    """The first unit, then each that brings the requests nearer to the target, but for the last if it were all."""
    kept, count = {order[0]}, sizes[order[0]]
    for unit in order[1:]:
        if abs(count + sizes[unit] - target) < abs(count - target) and len(kept) + 1 < len(order):
            kept.add(unit)
            count += sizes[unit]
    return kept


def unit_of(by: Unit) -> Callable[[RequestLine], Hashable]:
    """What stays together: a tenant, or a session; a request without one is a session of its own."""
    if by == "tenant":
        return lambda line: line.tenant
    return lambda line: ("id", line.id) if isinstance(line.session, UnsetType) else ("session", line.session)


def _check_sessions(trace: TraceLines) -> None:
    tenants: dict[str, str] = {}
    for line in trace.lines:
        if not isinstance(line.session, UnsetType) and tenants.setdefault(line.session, line.tenant) != line.tenant:
            raise ValueError(f"request {line.id}: its session has turns of two tenants; expected one")


def part(trace: TraceLines, lines: list[RequestLine], seconds: float, what: str, how: dict[str, Any]) -> TraceLines:
    """Some lines of `trace` as a trace that says how it was made: provenance.steps has one entry a step."""
    steps = [*trace.header.provenance.get("steps", ()), {what: how}]
    provenance = {**trace.header.provenance, "steps": steps}
    return TraceLines(replace(trace.header, provenance=provenance, seconds=seconds), lines)
