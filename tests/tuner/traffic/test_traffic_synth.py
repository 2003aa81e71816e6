"""`tune trace synth`: arrivals and lengths follow their laws, and the seed says which."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from tests.fakes import cases
from tuner.cli.__main__ import app
from tuner.traffic.arrivals import gamma_renewal, on_off, poisson
from tuner.traffic.inspection import inspect_trace
from tuner.traffic.lengths import Fixed, Lognormal, parse_lengths
from tuner.traffic.trace_file import load_trace
from tuner.traffic.trace_lines import HeaderLine, RequestLine, read_lines, write_lines

Arrivals = NDArray[np.float64]
ALMOST_NEVER = 1e-6
"""Below this a sample is not from the law; seeds are fixed."""


def tune(*args: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, args)))


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def test_poisson_gaps_are_exponential() -> None:
    arrivals = poisson(20, 1000, rng())
    assert scipy.stats.kstest(np.diff(arrivals), "expon", (0, 1 / 20)).pvalue > ALMOST_NEVER
    assert scipy.stats.poisson(20_000).cdf(len(arrivals)) > ALMOST_NEVER
    assert scipy.stats.poisson(20_000).sf(len(arrivals)) > ALMOST_NEVER


@pytest.mark.parametrize("cv", [0.2, 1.0, 3.0])
def test_gamma_gaps_are_gamma(cv: float) -> None:
    gaps = np.diff(gamma_renewal(20, cv, 1000, rng()), prepend=0.0)
    law = scipy.stats.gamma(cv**-2, scale=cv**2 / 20)
    assert (law.mean(), law.std()) == (pytest.approx(1 / 20), pytest.approx(cv / 20))
    told = gaps[gaps > 1e-9]  # below, a sum of seconds rounds them
    least = law.cdf(1e-9)
    assert scipy.stats.kstest(law.cdf(told), "uniform", (least, 1 - least)).pvalue > ALMOST_NEVER
    assert scipy.stats.binomtest(len(told), len(gaps), 1 - least).pvalue > ALMOST_NEVER


LONG_BINS = [
    # (the case, arrivals over 40,000 s at 5/s, limit of the index of dispersion)
    ("poisson", lambda: poisson(5, 40_000, rng()), 1),
    ("gamma, cv 2", lambda: gamma_renewal(5, 2, 40_000, rng()), 4),
    ("gamma, cv 0.5", lambda: gamma_renewal(5, 0.5, 40_000, rng()), 0.25),
    ("on 1 s, off 3 s", lambda: on_off(5, 1, 3, 40_000, rng()), 1 + 2 * 5 * 3**2 / (1 + 3)),
    ("on 2 s, off 2 s", lambda: on_off(5, 2, 2, 40_000, rng()), 1 + 2 * 5 * 2**2 / (2 + 2)),
]


@pytest.mark.parametrize(("draw", "limit"), cases(LONG_BINS))
def test_dispersion_of_long_bins(draw: Callable[[], Arrivals], limit: float) -> None:
    """400 bins of 100 s: the index is within 30 % of its limit (4 standard errors), the rate within 5 %."""
    arrivals = draw()
    counts = np.bincount((arrivals // 100).astype(int), minlength=400)
    assert counts.var() / counts.mean() == pytest.approx(limit, rel=0.3)
    assert len(arrivals) / 40_000 == pytest.approx(5, rel=0.05)
    assert (np.diff(arrivals) >= 0).all() and arrivals[0] >= 0 and arrivals[-1] < 40_000


def test_bursts_begin_in_their_steady_state() -> None:
    """4,000 traces of half a second: as many requests as later, within 4 standard errors."""
    counts = [len(on_off(5, 1, 3, 0.5, np.random.default_rng(seed))) for seed in range(4000)]
    assert np.mean(counts) == pytest.approx(2.5, abs=4 * np.std(counts) / 4000**0.5)


def test_lognormal_lengths_have_the_percentiles_asked_for() -> None:
    drawn = Lognormal(800, 4000).draw(20_000, rng())
    assert np.percentile(drawn, [50, 90]) == pytest.approx([800, 4000], rel=0.05)
    law = scipy.stats.lognorm(np.log(5) / scipy.stats.norm.ppf(0.9), scale=800)
    assert scipy.stats.kstest(drawn + rng().uniform(-0.5, 0.5, 20_000), law.cdf).pvalue > ALMOST_NEVER
    assert Lognormal(800, 4000, 1000).draw(1000, rng()).max() == 1000
    assert set(Fixed(7).draw(3, rng()).tolist()) == {7}


PARSED = [
    ("fixed", "fixed:128", Fixed(128)),
    ("lognormal", "lognormal:800:4000", Lognormal(800, 4000)),
    ("lognormal with a maximum", "lognormal:800:4000:16000", Lognormal(800, 4000, 16000)),
    ("p90 below p50", "lognormal:800:400", None),
    ("a maximum below p90", "lognormal:8:40:20", None),
    ("no tokens", "fixed:0", None),
    ("no number", "fixed:many", None),
    ("too few numbers", "lognormal:8", None),
    ("no law", "uniform:1:9", None),
]


@pytest.mark.parametrize(("text", "expected"), cases(PARSED))
def test_lengths_on_the_command_line(text: str, expected: Any) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="expected fixed:TOKENS or lognormal:P50:P90"):
            parse_lengths(text)
    else:
        assert parse_lengths(text) == expected


MADE = ("--seconds", "200", "--prompt-tokens", "lognormal:80:400", "--output-tokens", "fixed:12")


def test_a_made_trace_says_how_and_is_made_again(tmp_path: Path) -> None:
    options = ("--arrivals", "gamma", "--rate", "10", "--cv", "2", *MADE, "--tenant", "a=3", "--tenant", "b",
               "--slo-class", "chat=4", "--slo-class", "docs")  # fmt: skip
    for name, seed in (("one", "1"), ("same", "1"), ("other", "2")):
        result = tune("trace", "synth", "--out", tmp_path / name, *options, "--seed", seed)
        assert result.exit_code == 0, result.stderr
    assert (tmp_path / "one").read_bytes() == (tmp_path / "same").read_bytes()
    found, other = inspect_trace(tmp_path / "one"), inspect_trace(tmp_path / "other")
    assert not {one.arrival for one in found.requests} & {one.arrival for one in other.requests}
    assert found.arrivals.span == 200
    for group, share in ((found.tenants[0], 0.75), (found.classes[0], 0.8)):
        count = found.arrivals.requests
        test = scipy.stats.binomtest(group.arrivals.requests, count, share)
        assert test.pvalue > ALMOST_NEVER
    assert found.provenance == {
        "source": "tune trace synth", "arrivals": "gamma", "seed": 1, "rate": 10.0, "seconds": 200.0, "cv": 2.0,
        "lengths": ["lognormal:80:400", "fixed:12"],
    }  # fmt: skip
    requests = load_trace(tmp_path / "one").requests
    assert all(len(r.prompt) == r.prompt_tokens and r.output_tokens == r.max_tokens == 12 for r in requests)


def test_lengths_of_another_trace_are_drawn_in_pairs(tmp_path: Path) -> None:
    pairs = {(100, 5), (2000, 70), (40, 900)}
    lines = [RequestLine(f"r{i}", i, 9, prompt_tokens=p, output_tokens=o) for i, (p, o) in enumerate(sorted(pairs))]
    lines.append(RequestLine("r9", 9, 9, prompt_tokens=77))
    write_lines(tmp_path / "real", HeaderLine(1, {}), lines)
    options = ("--arrivals", "poisson", "--rate", "5", "--seconds", "60", "--lengths-from", tmp_path / "real")
    assert tune("trace", "synth", "--out", tmp_path / "made", *options).exit_code == 0
    made = {(line.prompt_tokens, line.output_tokens) for line in read_lines(tmp_path / "made").lines}
    assert made == pairs


def servegen_files(directory: Path) -> Path:
    """Three client windows: Gamma gaps, none, Weibull gaps."""
    path = directory / "chunk-7-trace.csv"
    path.write_text("0,2.0,2.0,Gamma,0.25,2.0\n600,0,0,,0,0\n1200,3.0,1.2,Weibull,0.8,0.3\n")
    lengths = {"input_tokens": "{100: 0.5, 300: 0.5}", "output_tokens": "{20: 1.0}"}
    (directory / "chunk-7-dataset.json").write_text(json.dumps({"0": lengths, "1200": lengths}))
    return path


def test_servegen_windows(tmp_path: Path) -> None:
    options = ("--arrivals", "servegen", "--windows", servegen_files(tmp_path), "--window", "0:1800")
    result = tune("trace", "synth", "--out", tmp_path / "made", *options, "--tenant", "a", "--tenant", "b")
    assert result.exit_code == 0, result.stderr
    found = inspect_trace(tmp_path / "made")
    counts = np.histogram([one.arrival for one in found.requests], [0, 600, 1200, 1800])[0]
    assert counts.tolist() == [1200, 0, 1800] and found.arrivals.span == 1800
    assert {one.prompt_tokens for one in found.requests} == {100, 300}
    assert {one.output_tokens for one in found.requests} == {20} and len(found.tenants) == 2
    again = tune("trace", "synth", "--out", tmp_path / "made", *options, *MADE[2:])
    assert again.exit_code == 0 and {one.max_tokens for one in read_lines(tmp_path / "made").lines} == {12}


RATE = ("--rate", "5", *MADE)
BAD = [
    # (the case, options, what the line says)
    ("no rate", ["--arrivals", "poisson", *MADE], "--rate: expected with --arrivals poisson"),
    ("no cv", ["--arrivals", "gamma", *RATE], "--cv: expected with --arrivals gamma"),
    ("a cv of none", ["--arrivals", "poisson", "--cv", "2", *RATE], "--cv: not of --arrivals poisson; gamma takes it"),
    ("cv 0", ["--arrivals", "gamma", "--cv", "0", *RATE], "cv: expected a number above 0, given 0"),
    ("no length", ["--arrivals", "poisson", *RATE[:4]], "--prompt-tokens and --output-tokens, or --lengths-from"),
    ("both", ["--arrivals", "poisson", *RATE, "--lengths-from", "x"], "or --lengths-from: expected either"),
    ("no request", ["--arrivals", "poisson", "--rate", "1e-9", *MADE], "no request arrives in 200 s"),
    ("a rate of 0", ["--arrivals", "poisson", "--rate", "0", *MADE], "rate, seconds: expected numbers above 0"),
    ("a rate that is none", ["--arrivals", "poisson", "--rate", "nan", *MADE], "rate, seconds: expected numbers above"),
    ("far too many", ["--arrivals", "poisson", "--rate", "1e9", *MADE], "expected at most 10,000,000 requests"),
    ("a weight of 0", ["--arrivals", "poisson", *RATE, "--tenant", "a=0"], "--tenant a=0: expected NAME=WEIGHT"),
    ("no weight", ["--arrivals", "poisson", *RATE, "--slo-class", "=2"], "--slo-class =2: expected NAME=WEIGHT"),
    ("no windows", ["--arrivals", "servegen", "--window", "0:9"], "--windows: expected with --arrivals servegen"),
]


@pytest.mark.parametrize(("options", "message"), cases(BAD))
def test_bad_request_is_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    result = tune("trace", "synth", "--out", tmp_path / "t.jsonl", *options)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
