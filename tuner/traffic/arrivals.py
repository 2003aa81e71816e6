"""Seeded arrival processes. Each yields seconds in [0, seconds), ascending; rate is the mean, in requests/s."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_REQUESTS = 10_000_000


def poisson(rate: float, seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Independent arrivals: gap CV and index of dispersion are 1."""
    _check(rate, seconds)
    return np.sort(rng.uniform(0, seconds, size=rng.poisson(rate * seconds)))


def gamma_renewal(rate: float, cv: float, seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Independent Gamma gaps with mean 1 / rate and coefficient of variation `cv`: below 1 regular, above 1 bursty.

    The index of dispersion of long bins tends to cv^2 (Cox, Renewal Theory, 1962).
    """
    _check(rate, seconds)
    if not cv > 0:
        raise ValueError(f"cv: expected a number above 0, given {cv:g}")
    shape, scale = cv**-2, cv**2 / rate
    chunk = max(16, round(rate * seconds * 1.1))
    arrivals = np.cumsum(rng.gamma(shape, scale, size=chunk))
    while arrivals[-1] < seconds:
        arrivals = np.concatenate([arrivals, arrivals[-1] + np.cumsum(rng.gamma(shape, scale, size=chunk))])
    return arrivals[arrivals < seconds]


def on_off(rate: float, on: float, off: float, seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Bursts: Poisson arrivals while on, none while off; periods are exponential with means `on` and `off` (seconds).

    An interrupted Poisson process with mean rate `rate`, started in its steady state. The index of dispersion of long
    bins tends to 1 + 2 rate off^2 / (on + off) (Heffes and Lucantoni, IEEE JSAC 1986).
    """
    _check(rate, seconds)
    if not (on > 0 and off > 0):
        raise ValueError(f"on, off: expected mean seconds above 0, given {on:g} and {off:g}")
    busy = rate * (on + off) / on
    _check(busy, seconds)
    pieces, time, is_on = [], 0.0, bool(rng.random() < on / (on + off))
    while time < seconds:
        until = time + rng.exponential(on if is_on else off)
        if is_on:
            end = min(until, seconds)
            pieces.append(np.sort(rng.uniform(time, end, size=rng.poisson(busy * (end - time)))))
        time, is_on = until, not is_on
    return np.concatenate(pieces) if pieces else np.empty(0)


def _check(rate: float, seconds: float) -> None:
    if not (rate > 0 and seconds > 0):
        raise ValueError(f"rate, seconds: expected numbers above 0, given {rate:g} and {seconds:g}")
    if not rate * seconds <= MAX_REQUESTS:
        raise ValueError(f"rate x seconds: expected at most {MAX_REQUESTS:,} requests, given {rate * seconds:g}")
