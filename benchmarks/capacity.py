"""Width of the interval of a capacity by requests spent, on a simulated server whose capacity is known.

    python -m benchmarks.capacity [--searches 100]

Prints a table in markdown. The server is one queue: a fixed trace of Poisson arrivals, closer together by the time
scale; services are log-normal, and each replay is faster or slower as a whole by a random factor (a machine has moods).
Its capacity is the scale at which half of the replays hold the SLO, found by 4,000 replays at each step of a bisection.
Beside the search stands a bisection that believes each replay, as many of them: it has no interval.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np

from tuner.capacity import LEAST, MOST, Play, find_capacity
from tuner.scoring.slo import SLO, required_good
from tuner.serving.testbed import Load
from tuner.threshold import Threshold
from tuner.traffic.replay import Progress, Replay, Stop
from tuner.traffic.trace import Request, RequestRecord

REQUESTS, RATE = 150, 10.0
SERVICE, SPREAD = 0.05, 0.5
"""Seconds of the median service, and the standard deviation of its logarithm."""
TTFT, ATTAINMENT = 0.5, 0.9
REPLAYS = (6, 8, 12, 16, 24)
MOODS = (0.0, 0.03, 0.10)
"""Standard deviation of the logarithm of a replay's factor."""


@dataclass(frozen=True, slots=True)
class Server:
    """mood: see MOODS. arrivals: seconds, at time scale 1."""

    arrivals: np.ndarray
    mood: float
    rng: np.random.Generator

    def waits(self, scale: float, replays: int) -> np.ndarray:
        """Seconds from arrival to answer; shape [replays, requests]. One queue in the order of arrival (Lindley)."""
        services = SERVICE * np.exp(SPREAD * self.rng.standard_normal((replays, len(self.arrivals))))
        services *= np.exp(self.mood * self.rng.standard_normal((replays, 1)))
        waits, gaps = np.empty_like(services), np.diff(self.arrivals, prepend=0.0) / scale
        behind = np.zeros(replays)
        for i, gap in enumerate(gaps):
            behind = np.maximum(behind - gap, 0.0) + services[:, i]
            waits[:, i] = behind
        return waits

    def holds(self, scale: float, replays: int) -> float:
        """Share of the replays that hold the SLO."""
        good = (self.waits(scale, replays) <= TTFT).sum(axis=1)
        return float((good >= required_good(ATTAINMENT, len(self.arrivals))).mean())

    def capacity(self) -> float:
        """The scale that holds in half of the replays."""
        low, high = 0.1, 10.0
        while high > 1.002 * low:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.holds(middle, 4000) > 0.5 else (low, middle)
        return math.sqrt(low * high)


def player(server: Server) -> Play:
    """Replays on the server; asked every second of the trace whether to stop, as a real replay is."""

    def play(load: Load, stop: Stop | None) -> Replay:
        waits = server.waits(load.time_scale, 1)[0]
        records = [_record(r, r.arrival / load.time_scale, w) for r, w in zip(load.requests, waits, strict=True)]
        for now in np.arange(0.25, load.duration, 0.25).tolist():
            ended = [record for record in records if record.token_times[-1] <= now]
            sent = [record for record in records if record.scheduled <= now]
            if stop is not None and (reason := stop(Progress(now, len(sent), len(records), ended))) is not None:
                return Replay(tuple(sent), reason, now)
        return Replay(tuple(records), None, load.duration)

    return play


def _record(request: Request, due: float, wait: float) -> RequestRecord:
    return RequestRecord(request.id, "t", "c", due, due, (due + wait,), 1, 1, 1, "length")


def bisection(server: Server, replays: int) -> float:
    """Doubling or halving from 1, then bisection, each replay believed."""
    low, high, scale = LEAST, MOST, 1.0
    for _ in range(replays):
        holds = server.holds(scale, 1) == 1.0
        low, high = (scale, high) if holds else (low, scale)
        scale = scale * 2 if high == MOST else scale / 2 if low == LEAST else math.sqrt(low * high)
    return math.sqrt(low * high)


def searched(server: Server, load: Load, truth: float) -> list[tuple[int, float, bool, float]]:
    """Of one search, after each number of REPLAYS: requests, width, whether the interval holds the truth, error."""
    slos = {"c": SLO(ttft=TTFT, attainment=ATTAINMENT)}
    found = find_capacity(load, slos, player(server), precision=1e-9, replays=max(REPLAYS))
    threshold, rows = Threshold(LEAST, MOST), []
    for number, one in enumerate(found.tried, start=1):
        threshold.add(one.time_scale, one.holds)
        if number in REPLAYS:
            known, spent = threshold.estimate(), sum(other.requests for other in found.tried[:number])
            rows.append((spent, known.width, known.low <= truth <= known.high, abs(math.log(known.value / truth))))
    return rows


def table(searches: int) -> None:
    """Print a row for each mood and number of replays."""
    print("| mood | capacity | replays | requests | width, median | coverage | error | error of bisection |")
    print("|---|---|---|---|---|---|---|---|")
    for mood in MOODS:
        arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / RATE, REQUESTS))
        server = Server(arrivals, mood, np.random.default_rng(1))
        requests = tuple(Request(f"r{i}", at, "t", "c", (1,), 1) for i, at in enumerate(arrivals.tolist()))
        truth, load = server.capacity(), Load(requests, float(arrivals[-1]), "all", 1.0, 10.0)
        rows = np.array([searched(server, load, truth) for _ in range(searches)])
        for index, replays in enumerate(REPLAYS):
            spent, width, covered, error = rows[:, index].T
            other = [abs(math.log(bisection(server, replays) / truth)) for _ in range(searches)]
            print(
                f"| {mood:.0%} | {truth:.3f} | {replays} | {spent.mean():.0f} | {np.median(width):.1%} "
                f"| {covered.mean():.0%} | {np.quantile(error, 0.9):.1%} | {np.quantile(other, 0.9):.1%} |"
            )
    print(f"\n{searches} searches a row; errors are the 90th percentile of |ln(found / true)|.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--searches", type=int, default=100)
    table(parser.parse_args().searches)
