"""`tune trace inspect`: against scipy, against published statistics of real traces, and what it doubts."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from tests.fakes import cases
from tuner.cli.__main__ import app
from tuner.traffic.inspection import inspect_trace
from tuner.traffic.statistics import arrival_statistics, length_statistics, prefix_sharing
from tuner.traffic.trace_doubts import requests_to_prove

FIXTURES = Path(__file__).parent / "fixtures"
PUBLISHED = Path("/work/shared/traces")


def tune(*args: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, args)))


def trace_file(path: Path, lines: Iterable[dict[str, Any]], **header: Any) -> Path:
    """A trace file of `lines`, each completed to a request."""
    texts = [json.dumps({"servetune_trace": 1, "provenance": {}, **header})]
    for number, line in enumerate(lines):
        texts.append(json.dumps({"id": f"r{number}", "arrival": float(number), "max_tokens": 8, **line}))
    path.write_text("\n".join(texts) + "\n")
    return path


@settings(max_examples=100)
@given(millis=st.lists(st.integers(0, 500_000), min_size=1, max_size=60).map(sorted), rest=st.integers(0, 100_000))
def test_arrival_statistics_are_scipys(millis: list[int], rest: int) -> None:
    arrivals, span = [one / 1000 for one in millis], (millis[-1] + rest) / 1000
    found = arrival_statistics(np.array(arrivals), span)
    gaps = np.diff(arrivals)
    if len(gaps) and gaps.mean() > 0:
        assert found.gap_cv == pytest.approx(scipy.stats.variation(gaps), nan_ok=True)
        assert found.zero_gaps == np.count_nonzero(gaps == 0) / len(gaps)
    for one in found.dispersion:
        edges = np.arange(int(span // one.bin_seconds) + 1) * one.bin_seconds
        counts = np.array([sum(low <= a < high for a in arrivals) for low, high in zip(edges, edges[1:], strict=False)])
        assert one.index == pytest.approx(np.var(counts) / np.mean(counts))
        assert one.peak_to_mean == pytest.approx(counts.max() / counts.mean())
    assert {one.bin_seconds for one in found.dispersion} <= {w for w in (1, 10, 60) if span >= 2 * w}


def test_poisson_arrivals_have_dispersion_one() -> None:
    """(bins - 1) times the index is chi-squared: inside all but a millionth of its distribution, at a fixed seed."""
    arrivals = np.sort(np.random.default_rng(7).uniform(0, 3600, size=18_000))
    found = arrival_statistics(arrivals, 3600.0)
    assert found.gap_cv == pytest.approx(1, abs=0.04)
    for one in found.dispersion:
        bins = int(3600 / one.bin_seconds)
        low, high = scipy.stats.chi2.ppf([5e-7, 1 - 5e-7], bins - 1) / (bins - 1)
        assert low < one.index < high


@settings(max_examples=100)
@given(lengths=st.lists(st.integers(1, 100_000), min_size=1, max_size=50))
def test_length_percentiles_are_scipys(lengths: list[int]) -> None:
    found = length_statistics(lengths)
    assert found is not None
    for rank, value in found.percentiles.items():
        assert value == pytest.approx(scipy.stats.scoreatpercentile(lengths, rank))
    assert (found.min, found.max, found.total) == (min(lengths), max(lengths), sum(lengths))


SHARING = [
    # (the case, prompts as (hashes, tokens, tokens of a block), share of blocks, share of tokens)
    ("nothing is shared", [((1, 2), 32, 16), ((3, 4), 32, 16)], 0, 0),
    ("the same prompt twice", [((1, 2), 32, 16), ((1, 2), 32, 16)], 0.5, 0.5),
    ("half of a prompt", [((1, 2), 32, 16), ((1, 3), 32, 16)], 0.25, 0.25),
    ("a block is no hit behind a miss", [((1, 2), 32, 16), ((9, 2), 32, 16)], 0, 0),
    ("a last block that is not full", [((1, 2), 20, 16), ((1, 2), 20, 16)], 0.5, 0.5),
    ("a prompt shorter than a block", [((), 5, 16), ((), 5, 16)], 0, 0),
    ("three turns, each continuing the last", [((1,), 16, 16), ((1, 2), 32, 16), ((1, 2, 3), 48, 16)], 0.5, 0.5),
]


@pytest.mark.parametrize(("prompts", "blocks", "tokens"), cases(SHARING))
def test_prefix_sharing(prompts: list[Any], blocks: float, tokens: float) -> None:
    found = prefix_sharing(prompts)
    assert found is not None
    assert (found.block_share, found.token_share) == (pytest.approx(blocks), pytest.approx(tokens))


KINDS = [
    # (the case, how a prompt of n units that begins with `shared` becomes a line, units that are 48 tokens)
    ("token ids", lambda units: {"prompt_token_ids": [17 + ord(c) for c in units]}, 48),
    ("text", lambda units: {"prompt": units, "prompt_tokens": len(units) // 4}, 192),
    (
        "messages",
        lambda units: {"messages": [{"role": "u", "content": units}], "endpoint": "chat", "prompt_tokens": 48},
        192 - 3,
    ),
]


@pytest.mark.parametrize(("line", "units"), cases(KINDS))
def test_sharing_of_prompts_that_are_there(line: Callable[[str], Any], units: int, tmp_path: Path) -> None:
    """Two prompts of 48 tokens, the first 32 equal: 32 of 96 tokens are hits."""
    cut = units - units // 3
    texts = ["a" * units, "a" * cut + "b" * (units - cut)]
    found = inspect_trace(trace_file(tmp_path / "t.jsonl", map(line, texts)))
    assert found.sharing is not None
    assert found.sharing.token_share == pytest.approx(1 / 3, abs=0.01)
    assert found.prompt.total == 96


def published(name: str) -> dict[str, Any]:
    """The statistics of one file as the README beside it states them."""
    (line,) = [line for line in (PUBLISHED / "README.md").read_text().splitlines() if line.startswith(f"- `{name}`")]
    numbers = {key: float(value) for key, value in re.findall(r"(\w+) (-?[\d.]+\d)\b", line.split("in: ")[0])}
    for side in ("in", "out"):
        part = line.split(f"{side}: ")[1].split(";")[0]
        numbers |= {f"{side}_{key}": float(value) for key, value in re.findall(r"(\w+) ([\d.]+)", part)}
    hit = re.search(r"prefix_block_hit_infinite_cache ([\d.]+)", line)
    return numbers | ({"hit": float(hit[1])} if hit else {})


REAL = ("azure2023_code_rows0-3967.csv", "azure2023_conv_rows0-8713.csv",
        "mooncake_conversation_rows0-3608.jsonl.gz", "mooncake_synthetic_rows0-1196.jsonl.gz")  # fmt: skip


def real_lines(name: str) -> list[dict[str, Any]]:
    """The rows of a published trace as lines of ours, with its clock as it is: an import would jitter it."""
    if name.endswith(".csv"):
        rows = [row.split(",") for row in (PUBLISHED / name).read_text().splitlines()[1:]]
        stamps = np.array([np.datetime64(row[0].strip().replace(" ", "T") + "00", "ns") for row in rows])
        arrivals = (stamps - stamps[0]).astype(np.int64) / 1e9
        return [
            {"arrival": at, "prompt_tokens": int(row[1]), "output_tokens": int(row[2])}
            for at, row in zip(arrivals.tolist(), rows, strict=True)
        ]
    rows = [json.loads(text) for text in gzip.decompress((PUBLISHED / name).read_bytes()).splitlines()]
    return [
        {
            "arrival": (row["timestamp"] - rows[0]["timestamp"]) / 1000, "prompt_tokens": row["input_length"],
            "output_tokens": row["output_length"], "hash_ids": row["hash_ids"],
        }
        for row in rows
    ]  # fmt: skip


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"no published traces at {PUBLISHED}")
@pytest.mark.parametrize("name", REAL)
def test_published_statistics_are_reproduced(name: str, tmp_path: Path) -> None:
    path = trace_file(tmp_path / "real.jsonl", real_lines(name), hash_block_tokens=512)
    result = tune("trace", "inspect", path, "--json")
    assert result.exit_code == 0
    found, said = json.loads(result.stdout), published(name)
    arrivals, (ten,) = found["arrivals"], [d for d in found["arrivals"]["dispersion"] if d["bin_seconds"] == 10]
    assert arrivals["span"] == pytest.approx(said["span_s"], abs=0.051)
    assert arrivals["rate"] == pytest.approx(said["rate_rps"], abs=0.0051)
    assert arrivals["gap_cv"] == pytest.approx(said["cv_iat"], abs=0.0051)
    assert arrivals["zero_gaps"] == pytest.approx(said["zero_iat"], abs=0.00051)
    assert ten["index"] == pytest.approx(said["idx_disp_10s"], abs=0.0051)
    assert ten["peak_to_mean"] == pytest.approx(said["peak_to_mean_10s"], abs=0.0051)
    for side, key in (("in", "prompt"), ("out", "output")):
        ranks = {f"p{rank}": value for rank, value in found[key]["percentiles"].items()}
        assert found[key]["mean"] == pytest.approx(said[f"{side}_mean"], abs=0.051)
        for rank in ("p50", "p90", "p99"):
            assert int(ranks[rank]) == said[f"{side}_{rank}"]
    if "hit" in said:
        assert found["sharing"]["block_share"] == pytest.approx(said["hit"], abs=0.00051)
    names = {doubt["name"] for doubt in found["doubts"]}
    assert ("quantised_clock" in names) == (name == "mooncake_conversation_rows0-3608.jsonl.gz")


def spread(count: int, seed: int = 0, **line: Any) -> list[dict[str, Any]]:
    """Poisson arrivals with varied lengths: nothing to doubt, were there enough of them."""
    rng = np.random.default_rng(seed)
    arrivals = np.sort(rng.uniform(0, count, size=count))
    return [
        {"arrival": at, "prompt_tokens": int(p), "hash_ids": [i], "output_tokens": int(o), **line}
        for i, (at, p, o) in enumerate(
            zip(arrivals.tolist(), rng.integers(9, 999, count), rng.integers(9, 99, count), strict=True)
        )
    ]


def changed(lines: Sequence[dict[str, Any]], **values: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
    return [{**line, **{key: value(line) for key, value in values.items()}} for line in lines]


DOUBTS = [
    # (the case, lines, names of the doubts)
    ("nothing", spread(400), []),
    ("298 requests cannot prove a p99", spread(298), ["too_few_requests"]),
    ("a class with few", spread(400) + [{"arrival": 399.5, "prompt_tokens": 5, "hash_ids": [1], "output_tokens": 5,
     "slo_class": "rare"}], ["too_few_requests"]),
    ("constant gaps", changed(spread(400), arrival=lambda line: line["hash_ids"][0] / 2), ["constant_gaps"]),
    ("whole seconds", changed(spread(400), arrival=lambda line: float(int(line["arrival"]))), ["quantised_clock"]),
    ("batches of four", changed(spread(400), arrival=lambda line: (line["hash_ids"][0] // 4) ** 1.01),
     ["simultaneous_arrivals"]),
    ("rate rises", changed(spread(400), arrival=lambda line: line["arrival"] ** 0.5), ["rate_drifts"]),
    ("a pause", changed(spread(400), arrival=lambda line: line["arrival"] + 200 * (line["arrival"] > 200)),
     ["silence"]),
    ("no prompt, no hash", [{k: v for k, v in line.items() if k != "hash_ids"} for line in spread(400)],
     ["sharing_unknown"]),
    ("answers of unknown length", [{k: v for k, v in line.items() if k != "output_tokens"} for line in spread(400)],
     ["output_lengths_unknown"]),
    ("answers counted in chunks", spread(400, output_tokens_estimated=True), ["output_lengths_estimated"]),
    ("equal prompts and answers", changed(spread(400), prompt_tokens=lambda _: 9, output_tokens=lambda _: 9),
     ["constant_prompts", "constant_outputs"]),
    ("answers at a limit", changed(spread(400), output_tokens=lambda line: min(line["output_tokens"], 80)),
     ["outputs_cut"]),
    ("text without usage", [{"arrival": line["arrival"], "prompt": "word " * (i % 9 + 1), "output_tokens": i % 99}
     for i, line in enumerate(spread(400))], ["prompt_lengths_estimated"]),
    ("one request", spread(1), ["too_few_requests"]),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "names"), cases(DOUBTS))
def test_doubts(lines: list[dict[str, Any]], names: list[str], tmp_path: Path) -> None:
    found = inspect_trace(trace_file(tmp_path / "t.jsonl", lines))
    assert [doubt.name for doubt in found.doubts] == names
    assert all(doubt.detail and doubt.advice for doubt in found.doubts)


def test_requests_to_prove_are_the_least_that_do() -> None:
    for rank, count in ((0.9, 29), (0.95, 59), (0.99, 299)):
        assert requests_to_prove(rank) == count
        assert scipy.stats.binom.pmf(0, count, 1 - rank) <= 0.05 < scipy.stats.binom.pmf(0, count - 1, 1 - rank)


def test_inspect_prints_tenants_sessions_and_a_line_cut_off(tmp_path: Path) -> None:
    lines = spread(40, tenant="acme")[:30] + spread(40, tenant="[bold]zeta", slo_class="docs")[30:]
    lines[3] |= {"session": "s"}
    lines[9] |= {"session": "s", "think_time": 4.0}
    path = trace_file(tmp_path / "t.jsonl", lines)
    path.write_bytes(path.read_bytes() + b'{"id": "torn", "prom')
    result = tune("trace", "inspect", path)
    assert result.exit_code == 0
    for expected in ("40 requests over", "acme", "[bold]zeta", "docs", "75.0%", "doubt: cut_off: line 42",
                     "sessions: 1 with 2 requests, turns p50 2 max 2, think time p50 4 s"):  # fmt: skip
        assert expected in result.stdout
    shown = json.loads(tune("trace", "inspect", path, "--json").stdout)
    assert [group["name"] for group in shown["tenants"]] == ["acme", "[bold]zeta"]
    assert shown["sessions"] == {"sessions": 1, "requests": 2, "turns_p50": 2.0, "turns_max": 2, "think_p50": 4.0}
    assert "requests" not in shown


def test_inspect_of_a_bad_file_is_one_line(tmp_path: Path) -> None:
    path = trace_file(tmp_path / "t.jsonl", [{"prompt_tokens": 4, "tenannt": "x"}])
    result = tune("trace", "inspect", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and "line 2: tenannt: unknown key; did you mean tenant?" in result.stderr


IMPORTED = [
    ("lengths alone: what they share is unknown", "azure_small.csv", "azure", False),
    ("lengths and hashes", "mooncake_small.jsonl", "mooncake", True),
]


@pytest.mark.parametrize(("name", "format", "known"), cases(IMPORTED))
def test_sharing_of_imported_traces(name: str, format: str, known: bool, tmp_path: Path) -> None:
    out, anonymous, key = (tmp_path / one for one in ("t.jsonl", "a.jsonl", "key"))
    key.write_bytes(b"0123456789abcdef")
    assert tune("trace", "import", FIXTURES / name, "--format", format, "--out", out).exit_code == 0
    assert tune("trace", "anonymize", out, "--key-file", key, "--out", anonymous).exit_code == 0
    for path in (out, anonymous):
        found = inspect_trace(path)
        assert (found.sharing is not None) == known
        assert ("sharing_unknown" not in {doubt.name for doubt in found.doubts}) == known
