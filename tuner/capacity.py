"""Capacity: the largest time scale of recorded traffic at which its SLOs hold.

Each replay offers the same requests, only closer together, and says whether every class had its share of good ones. By
the noise of the machine the same scale may hold once and miss once: the capacity is the scale that holds in half of the
replays, and comes with the 95 % interval that the replays leave (tuner/threshold.py).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tuner.early_stop import slo_unreachable
from tuner.errors import Doubtful
from tuner.scoring.doubts import Doubt, disqualifying, doubts
from tuner.scoring.metrics import traffic_metrics
from tuner.scoring.slo import SLO, cause
from tuner.serving.testbed import Load
from tuner.threshold import Threshold
from tuner.traffic.replay import Replay, Stop
from tuner.traffic.trace import RequestRecord

LEAST, MOST = 1 / 64, 1024.0
"""Time scales between which a capacity is looked for."""
FAR = math.log(4)
"""After a replay that holds or misses by this factor the next is four times as fast or as slow, otherwise twice."""
ATTEMPTS = 3
SHORT_SECONDS = 5.0
"""A replay that offers its requests in less time measures a burst."""
UNFINISHED = ("stopped", "not_sent")
"""Errors of requests that the end of a hopeless replay cut off: they say nothing of what broke."""
QUIET = ("stopped_early", "requests_failed", "too_few_requests", "not_stationary", "littles_law")
"""Doubts that a replay at the edge of capacity always has, or that the interval of the capacity already tells."""

Play = Callable[[Load, Stop | None], Replay]


@dataclass(frozen=True, slots=True)
class Tried:
    """One replay. violation: the largest of all classes (see slo.violation); of a replay that was stopped, as far as it
    got. requests: how many were sent. broke: "class.cause" -> requests, where it did not hold."""

    time_scale: float
    holds: bool
    violation: float
    requests: int
    broke: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Capacity:
    """time_scale: median, low and high its 95 % interval; rates in requests/s are those times the recorded rate.

    state: "found"; "above" where the fastest replay tried holds, "below" where the slowest misses: the interval then is
    open on that side. broke: what made requests bad just above the capacity, most frequent first. doubts: of any
    replay.
    """

    state: Literal["found", "above", "below"]
    time_scale: float
    low: float
    high: float
    recorded_rate: float
    tried: tuple[Tried, ...]
    broke: Mapping[str, int]
    doubts: tuple[Doubt, ...]

    @property
    def requests(self) -> int:
        """Sent in all replays."""
        return sum(one.requests for one in self.tried)


def find_capacity(
    load: Load,
    slos: Mapping[str, SLO],
    play: Play,
    *,
    precision: float = 0.2,
    replays: int = 16,
    on_tried: Callable[[Tried], None] = lambda tried: None,
) -> Capacity:
    """Replay `load` at scales of its own until the interval is at most `precision` wide (high / low - 1), or `replays`
    times. load.time_scale is where the search begins. play: replays a load, on the same server each time. A replay
    whose figures are not the server's (a client that lagged) is no evidence and is made again. After Ctrl-C the answer
    is what the replays before it tell, with a doubt. Raises Doubtful when ATTEMPTS in a row are such."""
    assert replays > 0 and precision > 0, f"{replays} replays, precision {precision}"
    threshold, tried, found = Threshold(LEAST, MOST), list[Tried](), dict[str, Doubt]()
    scale = min(max(load.time_scale, LEAST), MOST)
    while len(tried) < replays:
        try:
            one, doubted = _sound(replace(load, time_scale=scale), slos, play)
        except KeyboardInterrupt:
            if not tried:
                raise
            detail = f"after {len(tried)} of at most {replays} replays"
            found["interrupted"] = Doubt("interrupted", detail, "more would narrow the interval")
            break
        tried.append(one)
        found.update((doubt.name, doubt) for doubt in doubted)
        threshold.add(scale, one.holds)
        on_tried(one)
        bracketed = len({other.holds for other in tried}) == 2
        if bracketed and threshold.estimate().width <= precision:
            break
        following = threshold.next_level() if bracketed else _step(one)
        if not LEAST <= following <= MOST:
            break
        scale = following
    return _summary(load, tried, threshold, tuple(found.values()))


def _step(last: Tried) -> float:
    """Before both a hold and a miss are known: twice or four times as fast, or as slow."""
    factor = 4.0 if abs(last.violation) > FAR else 2.0
    return last.time_scale * factor if last.holds else last.time_scale / factor


def _sound(load: Load, slos: Mapping[str, SLO], play: Play) -> tuple[Tried, list[Doubt]]:
    """The first replay that no doubt disqualifies, with the doubts of all before it too."""
    seen: list[Doubt] = []
    for attempt in itertools.count(1):
        one, found = _try(load, slos, play)
        seen += found
        if (doubt := disqualifying(found)) is None:
            break
        if attempt == ATTEMPTS:
            raise Doubtful(f"x{load.time_scale:.3g}: {doubt.name}: {doubt.detail}; {doubt.advice}")
    return one, seen


def _try(load: Load, slos: Mapping[str, SLO], play: Play) -> tuple[Tried, list[Doubt]]:
    # Only the verdict counts, so a replay ends as soon as no continuation could hold.
    done = play(load, slo_unreachable(load.requests, slos, load.time_scale, margin=0.0))
    metrics = traffic_metrics(done.records, slos, load.duration)
    violation = max(found.violation for found in metrics.classes.values())
    holds = done.stopped is None and violation <= 0
    broke = {} if holds else _causes(done.records, slos, {n for n, c in metrics.classes.items() if c.violation > 0})
    sent = sum(record.sent is not None for record in done.records)
    seen = [doubt for doubt in doubts(done.records, metrics, slos, done.stopped) if doubt.name not in QUIET]
    if holds and load.duration < SHORT_SECONDS:
        detail = f"at x{load.time_scale:.3g} the requests were offered in {load.duration:.1f} s"
        seen.append(Doubt("burst", detail, "the requests are offered within seconds: use a longer window"))
    return Tried(load.time_scale, holds, violation, sent, broke), seen


def _causes(records: Sequence[RequestRecord], slos: Mapping[str, SLO], classes: set[str]) -> dict[str, int]:
    """ "class.cause" -> bad requests of the classes that missed, most frequent first."""
    judged = [record for record in records if record.slo_class in classes and record.error not in UNFINISHED]
    causes = Counter(
        f"{record.slo_class}.{found}"
        for record in judged
        if (found := cause(record, slos[record.slo_class])) is not None
    )
    return dict(causes.most_common())


def _summary(load: Load, tried: Sequence[Tried], threshold: Threshold, found: tuple[Doubt, ...]) -> Capacity:
    estimate = threshold.estimate()
    held, missed = ([one for one in tried if one.holds is holds] for holds in (True, False))
    known = estimate.value if held and missed else tried[-1].time_scale
    above = [one for one in missed if one.time_scale >= known] or missed
    nearest = min(above, key=lambda one: one.time_scale, default=None)
    return Capacity(
        state="found" if held and missed else "above" if held else "below",
        time_scale=known,
        low=estimate.low if held else 0.0,
        high=estimate.high if missed else math.inf,
        recorded_rate=len(load.requests) / load.span,
        tried=tuple(tried),
        broke={} if nearest is None else nearest.broke,
        doubts=found,
    )
