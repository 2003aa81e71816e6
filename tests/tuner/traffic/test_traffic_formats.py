"""Published traces: times and lengths as the source has them, prompts shared where the source's hashes are."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.traffic.formats import import_trace
from tuner.traffic.trace import Trace
from tuner.traffic.trace_file import load_trace, save_trace

FIXTURES = Path(__file__).parent / "fixtures"
AZURE = FIXTURES / "azure_small.csv"
MOONCAKE = FIXTURES / "mooncake_small.jsonl"
PUBLISHED = Path("/work/shared/traces")


def lengths(trace: Trace) -> list[tuple[int | None, int | None]]:
    return [(request.prompt_tokens, request.output_tokens) for request in trace.requests]


def test_azure_arrivals_are_exact_to_a_tick_across_midnight() -> None:
    trace = import_trace(AZURE, "azure", tenant="acme", slo_class="chat")
    assert [request.arrival for request in trace.requests] == [0.0, 2e-7, 1.5000001, 4.2500001]
    assert lengths(trace) == [(100, 10), (7, 1), (4000, 1), (40, 900)]
    assert {(request.tenant, request.slo_class) for request in trace.requests} == {("acme", "chat")}
    assert [len(request.prompt) for request in trace.requests] == [100, 7, 4000, 40]
    assert all(request.max_tokens == request.output_tokens for request in trace.requests)


OPTIONS = [
    ("scaled", {"length_scale": 0.1}, [(10, 1), (1, 1), (400, 1), (4, 90)]),
    ("capped", {"max_prompt_tokens": 50, "max_output_tokens": 20}, [(50, 10), (7, 1), (50, 1), (40, 20)]),
    ("scaled, then capped", {"length_scale": 0.1, "max_prompt_tokens": 50}, [(10, 1), (1, 1), (50, 1), (4, 90)]),
    ("first two", {"limit": 2}, [(100, 10), (7, 1)]),
    ("from second 1", {"start": 1.0}, [(4000, 1), (40, 900)]),
    ("half-open end", {"end": 1.5000001}, [(100, 10), (7, 1)]),
    ("limit counts inside the window", {"start": 1.0, "limit": 1}, [(4000, 1)]),
]


@pytest.mark.parametrize(("options", "expected"), [row[1:] for row in OPTIONS], ids=[row[0] for row in OPTIONS])
def test_options(options: dict[str, float], expected: list[tuple[int, int]]) -> None:
    assert lengths(import_trace(AZURE, "azure", **options)) == expected  # type: ignore[arg-type]


def test_window_is_rebased_and_knows_its_length() -> None:
    trace = import_trace(AZURE, "azure", start=1.0, end=5.0)
    assert [request.arrival for request in trace.requests] == pytest.approx([0.5000001, 3.2500001])
    assert trace.span == 4.0


def test_same_seed_same_trace_and_another_seed_other_tokens_of_the_same_lengths() -> None:
    first, again, other = (import_trace(MOONCAKE, "mooncake", seed=seed, length_scale=0.05) for seed in (1, 1, 2))
    assert first == again
    assert first.requests != other.requests
    assert sorted(map(str, lengths(first))) == sorted(map(str, lengths(other)))


def test_token_ids_stay_in_the_vocabulary_and_off_the_special_tokens() -> None:
    trace = import_trace(AZURE, "azure", vocab_size=64)
    used = {token for request in trace.requests for token in request.prompt}
    assert used == set(range(16, 64))


def test_mooncake_ticks_become_seeded_times_within_the_tick() -> None:
    trace = import_trace(MOONCAKE, "mooncake")
    ticks = sorted(round(json.loads(line)["timestamp"] / 3000) * 3 for line in MOONCAKE.read_text().splitlines())
    arrivals = [request.arrival for request in trace.requests]
    assert all(tick <= arrival < tick + 3 for tick, arrival in zip(ticks, arrivals, strict=True))
    assert all(earlier < later for earlier, later in pairwise(arrivals))
    assert "jitter" in trace.provenance


def test_mooncake_times_off_the_ticks_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "synthetic.jsonl"
    rows = [{"timestamp": at, "input_length": 9, "output_length": 1, "hash_ids": [at]} for at in (27, 482, 3000)]
    path.write_text("\n".join(map(json.dumps, rows)))
    trace = import_trace(path, "mooncake")
    assert [request.arrival for request in trace.requests] == pytest.approx([0.0, 0.455, 2.973])
    assert "jitter" not in trace.provenance


def test_gzip_reads_like_plain_text(tmp_path: Path) -> None:
    packed = tmp_path / "mooncake_small.jsonl.gz"
    packed.write_bytes(gzip.compress(MOONCAKE.read_bytes()))
    assert import_trace(packed, "mooncake").requests == import_trace(MOONCAKE, "mooncake").requests


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 512)), min_size=2, max_size=6),
    scale=st.floats(0.02, 1.0),
)
def test_leading_tokens_are_equal_exactly_as_far_as_leading_hashes(
    rows: list[tuple[int, int, int]], scale: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Chained hashes as in Mooncake: a request shares the first blocks of one common document, then goes its own way.

    A scale of at least 0.02 gives blocks of 10 tokens and more, so that chance equality is out of the question.
    """
    path = tmp_path_factory.getbasetemp() / "shared.jsonl"
    hashes = [[*range(shared), *(1000 * i + 100 + j for j in range(own))] for i, (shared, own, _) in enumerate(rows, 1)]
    records = [
        {"timestamp": 7 * i, "input_length": 512 * (len(ids) - 1) + last, "output_length": 1, "hash_ids": ids}
        for i, (ids, (_, _, last)) in enumerate(zip(hashes, rows, strict=True))
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    prompts = [request.prompt for request in import_trace(path, "mooncake", length_scale=scale).requests]
    for (a, b), (ids_a, ids_b) in zip(pairwise(prompts), pairwise(hashes), strict=True):
        common = next((i for i, (x, y) in enumerate(zip(ids_a, ids_b, strict=False)) if x != y), 5)
        boundary = min(round(common * 512 * scale), len(a), len(b))
        assert a[:boundary] == b[:boundary]
        following = slice(boundary, boundary + 10)
        if min(len(a), len(b)) >= boundary + 10:
            assert a[following] != b[following]


def test_imported_trace_survives_a_file(tmp_path: Path) -> None:
    trace = import_trace(MOONCAKE, "mooncake", length_scale=0.05)
    save_trace(trace, tmp_path / "trace.jsonl")
    assert load_trace(tmp_path / "trace.jsonl") == trace


GOOD_ROW = '{"timestamp": 1, "input_length": 9, "output_length": 1, "hash_ids": [1]}\n'
BAD_SOURCES = [
    ("azure", "a column is missing", "TIMESTAMP,ContextTokens\n", "GeneratedTokens is missing"),
    ("azure", "empty file", "", "TIMESTAMP is missing"),
    ("azure", "no rows", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
    ("azure", "bad time", "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", "line 2: TIMESTAMP"),
    (
        "azure",
        "bad fraction",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:00.x,1,1\n",
        "line 2: TIMESTAMP",
    ),
    (
        "azure",
        "negative",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:00,-1,1\n",
        "line 2: ContextTokens",
    ),
    (
        "azure",
        "short row",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:00,1\n",
        "line 2: GeneratedTokens",
    ),
    ("mooncake", "no JSON", GOOD_ROW + "{", "line 2"),
    ("mooncake", "a key is missing", '{"timestamp": 1}\n', "line 1: Object missing required field `input_length`"),
    ("mooncake", "negative length", GOOD_ROW.replace("9", "-9"), "$.input_length"),
    ("mooncake", "empty file", "", "holds no request"),
    ("mooncake", "cut gzip", "\x1f\x8b\x08", "damaged"),
    ("sharegpt", "unknown format", "", "expected one of azure, mooncake"),
]


@pytest.mark.parametrize(
    ("format", "content", "message"),
    [(r[0], r[2], r[3]) for r in BAD_SOURCES],
    ids=[f"{r[0]}: {r[1]}" for r in BAD_SOURCES],
)
def test_bad_source_is_named(format: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=".") as caught:
        import_trace(path, format)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


REAL = [
    # file, format, then what /work/shared/traces/README.md says of it: rows, span, rate, CV of gaps, mean and max input
    ("azure2023_code_rows0-3967.csv", "azure", 3968, 1354.2, 2.93, 14.03, 2040.6, 7437),
    ("azure2023_conv_rows0-8713.csv", "azure", 8714, 1622.6, 5.37, 1.06, 1214.7, 14050),
    ("mooncake_conversation_rows0-3608.jsonl.gz", "mooncake", 3609, 1187.5, 3.04, None, 13422.5, 123192),
    ("mooncake_synthetic_rows0-1196.jsonl.gz", "mooncake", 1197, 328.2, 3.647, 1.01, 11826.5, 134773),
]


@pytest.mark.parametrize("row", REAL, ids=[row[0] for row in REAL])
def test_published_files_have_their_published_statistics(
    row: tuple[str, str, int, float, float, float | None, float, int],
) -> None:
    name, format, count, span, rate, cv, mean_input, max_input = row
    path = PUBLISHED / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine: the published traces are not committed")
    trace = import_trace(path, format, length_scale=1 / 16)
    arrivals = np.array([request.arrival for request in trace.requests])
    inputs = np.array([request.prompt_tokens for request in trace.requests]) * 16
    gaps = np.diff(arrivals)
    assert len(trace.requests) == count
    assert trace.span == pytest.approx(span, abs=0.06)
    assert len(arrivals) / trace.span == pytest.approx(rate, rel=0.005)
    assert inputs.mean() == pytest.approx(mean_input, rel=0.002)
    assert inputs.max() == pytest.approx(max_input, abs=8)
    if cv is not None:
        assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=0.01)
    else:
        assert (gaps > 0).all(), "the ticks' zero gaps are gone"
