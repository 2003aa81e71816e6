"""When requests arrive: the source's clock made ours, or a process where the source has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tuner.traffic.importers.options import ImportOptions
from tuner.traffic.importers.row import Row

TICKS = (60, 30, 15, 10, 5, 3, 2, 1)
"""Seconds of the coarse clocks that are looked for, coarsest first: Mooncake 3, BurstGPT 1."""
TICK_TOLERANCE_NS = 1_000_000
"""Mooncake's ticks of 3,000 ms are rounded to 2,999 in places."""
_JITTER, _STARTS = 2, 3

Arrived = list[tuple[float, Row]]
"""(seconds from the start of the trace, row), sorted by the former."""


def recorded(
    rows: Sequence[Row], options: ImportOptions, notes: dict[str, object], origin: int | None = None
) -> Arrived:
    """Rows that all tell their arrival: sorted, counted from the first or from origin (nanoseconds on their clock), and
    off the ticks of a coarse clock."""
    if options.rate is not None:
        raise ValueError("--rate: the source tells its own arrivals; to change the rate, use tune trace scale")
    stamps = np.array([row.arrival for row in rows], dtype=np.int64)
    if (late := int((np.diff(stamps) < 0).sum())) > 0:
        notes["out_of_order"] = late
    order = np.argsort(stamps, kind="stable")
    seconds = _off_the_ticks(stamps[order], int(stamps.min()) if origin is None else origin, options, notes)
    return list(zip(seconds.tolist(), [rows[i] for i in order], strict=True))


def _off_the_ticks(
    stamps: NDArray[np.int64], origin: int, options: ImportOptions, notes: dict[str, object]
) -> NDArray[np.float64]:
    """Seconds after the origin of sorted nanoseconds. On a coarse clock each gets a seeded place within its tick, in
    their order: 89 % of the gaps of the Mooncake trace are zero, and replayed as it stands every tick would be a burst
    that never happened."""
    tick = _tick(stamps) if options.tick is None else round(options.tick * 1e9)
    if not tick:
        return np.asarray((stamps - origin) / 1e9, dtype=np.float64)
    ticks = (stamps + tick // 2) // tick
    first = (origin + tick // 2) // tick
    places = np.random.default_rng([options.seed, _JITTER]).uniform(0, tick, size=len(stamps))
    order = np.lexsort((places, ticks))
    notes["jitter"] = f"uniform within the {tick / 1e9:g} s ticks of the source"
    return np.asarray(((ticks - first) * tick + places[order]) / 1e9, dtype=np.float64)


def _tick(stamps: NDArray[np.int64]) -> int:
    """Nanoseconds of the clock's tick, 0 for a fine one. A clock is coarse when all times sit on ticks and some share
    one; without the latter nothing arrives together that did not."""
    if len(stamps) < 2 or not (np.diff(stamps) == 0).any() or stamps[0] == stamps[-1]:
        return 0
    for seconds in TICKS:
        tick = seconds * 10**9
        off = (stamps + tick // 2) % tick - tick // 2
        if np.abs(off).max() <= TICK_TOLERANCE_NS:
            return tick
    return 0


def drawn(rows: Sequence[Row], options: ImportOptions, notes: dict[str, object]) -> Arrived:
    """Rows of a source without a clock for all: sessions, and requests that belong to none, start by a renewal process
    with Gamma gaps of mean 1 / rate. Within a session arrivals are the start plus the row's own, or where it tells
    none the turn before's plus the think time. Raises ValueError where there is more than one start and no rate."""
    first: dict[str | int, int] = {}
    keys = [row.clock or (index if row.session is None else row.session) for index, row in enumerate(rows)]
    for key in keys:
        first.setdefault(key, len(first))
    starts = _starts(len(first), options, notes)
    found: Arrived = []
    before: dict[str | int, float] = {}
    for key, row in zip(keys, rows, strict=True):
        if row.arrival is not None:
            arrival = starts[first[key]] + row.arrival / 1e9
        elif key in before:
            row = row if row.think_time is not None else replace(row, think_time=options.think_time)
            arrival = before[key] + (row.think_time or 0.0)
        else:
            arrival = starts[first[key]]
        before[key] = arrival
        found.append((arrival, row))
    found.sort(key=lambda pair: pair[0])
    return found


def _starts(count: int, options: ImportOptions, notes: dict[str, object]) -> list[float]:
    if count <= 1:
        return [0.0]
    if options.rate is None:
        raise ValueError(f"--rate: expected starts a second, for the source does not tell when its {count} parts began")
    rng = np.random.default_rng([options.seed, _STARTS])
    mean, square = 1 / options.rate, options.cv**2
    gaps = np.full(count - 1, mean) if square == 0 else rng.gamma(1 / square, mean * square, size=count - 1)
    notes["arrivals"] = f"drawn: Gamma gaps, {options.rate:g} a second, CV {options.cv:g}"
    return [0.0, *np.cumsum(gaps).tolist()]


def in_turns(arrived: Arrived, notes: dict[str, object]) -> Arrived:
    """Think times of sessions whose rows tell when answers ended. A turn that began before the turn before had ended
    did not wait for it: such parallel turns become sessions of their own, "name#2" and so on, as many as ran at
    once."""
    lanes: dict[str, list[tuple[int | None, str]]] = {}
    found: Arrived = []
    for arrival, row in arrived:
        if row.session is None:
            found.append((arrival, row))
            continue
        mine = lanes.setdefault(row.session, [])
        free = [i for i, (end, _) in enumerate(mine) if end is None or row.arrival is None or end <= row.arrival]
        if not free:
            mine.append((row.end, row.session if not mine else f"{row.session}#{len(mine) + 1}"))
            found.append((arrival, replace(row, session=mine[-1][1], think_time=None)))
            continue
        lane = max(free, key=lambda i: mine[i][0] or 0)
        end, name = mine[lane]
        known = row.think_time is None and end is not None and row.arrival is not None
        think_time = (row.arrival - end) / 1e9 if known else row.think_time  # type: ignore[operator]
        mine[lane] = (row.end, name)
        found.append((arrival, replace(row, session=name, think_time=think_time)))
    if parallel := sum(len(mine) - 1 for mine in lanes.values()):
        notes["parallel_turns"] = f"{parallel} times a turn did not wait for the one before: sessions of their own"
    return found
