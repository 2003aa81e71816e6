"""`tune trace split` and `scale`: every request once, users disjoint, sessions whole, shared prefixes kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from typer.testing import CliRunner, Result

from tests.fakes import cases
from tuner.cli.__main__ import app
from tuner.traffic.inspection import inspect_trace
from tuner.traffic.scaling import length_scaled, thinned, time_scaled
from tuner.traffic.split import split_by_time, split_by_unit, unit_of
from tuner.traffic.trace_file import load_trace
from tuner.traffic.trace_lines import HeaderLine, Message, RequestLine, TraceLines, write_lines


def tune(*args: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, args)))


@st.composite
def traces(draw: st.DrawFn) -> TraceLines:
    """Requests of a few tenants, some of them turns of their tenant's sessions."""
    count = draw(st.integers(2, 30))
    arrivals = sorted(draw(st.lists(st.integers(0, 1000), min_size=count, max_size=count)))
    seen: set[str] = set()
    lines = []
    for number, arrival in enumerate(arrivals):
        line = RequestLine(f"r{number}", arrival / 10, 8, tenant=draw(st.sampled_from("abcd")), prompt_tokens=9)
        if draw(st.booleans()):
            line.session = f"{line.tenant}{draw(st.integers(0, 1))}"
            if line.session in seen:
                line.think_time = 1.5
            seen.add(line.session)
        lines.append(line)
    return TraceLines(HeaderLine(1, {"source": "s"}, seconds=100.0), lines)


def sessions(trace: TraceLines) -> set[Any]:
    return {line.session for line in trace.lines if line.session is not UNSET}


def loadable(trace: TraceLines, path: Path) -> None:
    write_lines(path, trace.header, trace.lines)
    assert len(load_trace(path).requests) == len(trace.lines)


@settings(max_examples=100)
@given(trace=traces(), by=st.sampled_from(["time", "tenant", "session"]), share=st.floats(0.05, 0.95), data=st.data())
def test_split_parts_are_disjoint_whole_and_loadable(
    trace: TraceLines, by: Any, share: float, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        parts = split_by_time(trace, share * 100) if by == "time" else split_by_unit(trace, by, share, 3)
    except ValueError as error:
        assert "without requests" in str(error) or "only one" in str(error)
        return
    first, second = parts
    ids = [line.id for line in first.lines], [line.id for line in second.lines]
    assert sorted(ids[0] + ids[1]) == sorted(line.id for line in trace.lines) and all(ids)
    assert not sessions(first) & sessions(second)
    if by == "tenant":
        assert not {line.tenant for line in first.lines} & {line.tenant for line in second.lines}
    if by == "time":
        assert all(line.arrival < share * 100 for line in first.lines if line.session is UNSET)
        assert second.span == pytest.approx(100 - share * 100)
    else:
        assert first.span == second.span == 100
        sizes = Counter(map(unit_of(by), trace.lines))
        assert abs(len(first.lines) - share * len(trace.lines)) <= max(sizes.values())
    for part in parts:
        loadable(part, tmp_path_factory.getbasetemp() / "part.jsonl")


def trace_of(*lines: RequestLine, seconds: float = 10.0) -> TraceLines:
    return TraceLines(HeaderLine(1, {}, seconds=seconds), list(lines))


def request(name: str, arrival: float, **values: Any) -> RequestLine:
    return RequestLine(name, arrival, 8, **({"prompt_tokens": 100} | values))


def test_a_session_goes_where_it_begins() -> None:
    trace = trace_of(
        request("a1", 1, session="a"), request("b1", 5, session="b"), request("a2", 7, session="a", think_time=2.0),
        request("x", 8), seconds=9,
    )  # fmt: skip
    first, second = split_by_time(trace, 4)
    assert [(line.id, line.arrival) for line in first.lines] == [("a1", 1), ("a2", 7)]
    assert [(line.id, line.arrival) for line in second.lines] == [("b1", 1), ("x", 4)]
    assert (first.span, second.span) == (7, 5)
    assert first.header.provenance["steps"] == [{"split": {"by": "time", "seconds": 4, "part": "tune"}}]


def test_a_cut_behind_the_last_beginning_says_why() -> None:
    trace = trace_of(request("a", 0, session="s"), request("b", 9, session="s"))
    with pytest.raises(ValueError, match="part without requests; a session belongs to the part in which it begins"):
        split_by_time(trace, 5)


def test_units_are_drawn_by_seed() -> None:
    trace = trace_of(*(request(f"r{i}", i / 100, tenant=f"t{i % 37}") for i in range(1000)))
    picks = set()
    for seed in range(5):
        first, second = split_by_unit(trace, "tenant", 0.6, seed)
        assert 590 <= len(first.lines) <= 610 and len(second.lines) == 1000 - len(first.lines)
        picks.add(tuple(sorted({line.tenant for line in first.lines})))
    assert len(picks) == 5
    assert split_by_unit(trace, "tenant", 0.6, 1) == split_by_unit(trace, "tenant", 0.6, 1)


def test_few_units_of_unequal_sizes_come_as_near_as_they_can() -> None:
    """Tenants of 61 and 24 requests: 0.7 of them is the first, 0.3 the second, whatever the seed."""
    trace = trace_of(*(request(f"r{i}", i / 100, tenant="chat" if i < 61 else "docs") for i in range(85)))
    for seed in range(5):
        assert {line.tenant for line in split_by_unit(trace, "tenant", 0.7, seed)[0].lines} == {"chat"}
        assert {line.tenant for line in split_by_unit(trace, "tenant", 0.3, seed)[0].lines} == {"docs"}


def test_time_scale_divides_all_times() -> None:
    trace = trace_of(request("a", 1, session="s"), request("b", 4, session="s", think_time=3.0))
    scaled = time_scaled(trace, 2)
    assert [(line.arrival, line.think_time) for line in scaled.lines] == [(0.5, UNSET), (2, 1.5)]
    assert scaled.span == 5
    assert scaled.lines[0] == request("a", 0.5, session="s"), "nothing else changes"


LENGTHS = [
    # (the case, line, prompt factor, output factor, what becomes of it)
    (
        "lengths alone",
        {"prompt_tokens": 100, "output_tokens": 30},
        0.25,
        2,
        {"prompt_tokens": 25, "output_tokens": 60, "max_tokens": 16},
    ),
    (
        "token ids doubled",
        {"prompt_token_ids": [5, 6, 7], "prompt_tokens": UNSET},
        2,
        1,
        {"prompt_token_ids": [5, 5, 6, 6, 7, 7], "max_tokens": 8},
    ),
    (
        "token ids halved",
        {"prompt_token_ids": [5, 6, 7, 8], "prompt_tokens": 4},
        0.5,
        1,
        {"prompt_token_ids": [5, 7], "prompt_tokens": 2},
    ),
    ("words", {"prompt": "one two three four", "prompt_tokens": UNSET}, 0.5, 1, {"prompt": "one three"}),
    ("words doubled", {"prompt": "one two", "prompt_tokens": 2}, 2, 1, {"prompt": "oneone two two"}),
    ("never nothing", {"prompt": "word", "prompt_tokens": 1}, 0.01, 0.01, {"prompt": "word", "max_tokens": 1}),
    (
        "messages",
        {"messages": [Message("user", "a b c d"), Message("assistant", "")], "endpoint": "chat"},
        0.5,
        1,
        {"messages": [Message("user", "a c"), Message("assistant", "")], "prompt_tokens": 50},
    ),
    ("an answer of 0 stays 0", {"output_tokens": 0}, 1, 3, {"output_tokens": 0, "max_tokens": 24}),
    ("recorded answers go", {"reference": "said"}, 1, 0.5, {"reference": UNSET}),
    ("recorded answers stay", {"reference": "said"}, 0.5, 1, {"reference": "said"}),
]


@pytest.mark.parametrize(("line", "prompt", "output", "expected"), cases(LENGTHS))
def test_length_scale(line: dict[str, Any], prompt: float, output: float, expected: dict[str, Any]) -> None:
    (scaled,) = length_scaled(trace_of(request("a", 0, **line)), prompt, output).lines
    assert {key: getattr(scaled, key) for key in expected} == expected


@settings(max_examples=100)
@given(
    beginning=st.lists(st.integers(0, 9), max_size=30),
    one=st.lists(st.integers(10, 19), min_size=1, max_size=30),
    other=st.lists(st.integers(20, 29), min_size=1, max_size=30),
    factor=st.floats(0.1, 4),
)
def test_length_scale_scales_the_shared_beginning(
    beginning: list[int], one: list[int], other: list[int], factor: float
) -> None:
    prompts = [request(n, 0, prompt_token_ids=beginning + end) for n, end in (("a", one), ("b", other))]
    first, second = (line.prompt_token_ids for line in length_scaled(trace_of(*prompts), factor).lines)
    assert isinstance(first, list) and isinstance(second, list)
    assert len(first) == max(1, round(len(beginning + one) * factor))
    shared = sum(token < 10 for token in first)
    assert first[:shared] == second[:shared] or len(second) < shared
    assert shared == pytest.approx(len(beginning) * factor, abs=1.01)


def test_scaled_hashes_share_what_they_shared(tmp_path: Path) -> None:
    """Blocks of 51.2 tokens: the loader draws equal tokens exactly as far as before, scaled."""
    lines = [request("a", 0, prompt_tokens=1000, hash_ids=[1, 2]), request("b", 1, prompt_tokens=800, hash_ids=[1, 3])]
    path = tmp_path / "t.jsonl"
    write_lines(path, HeaderLine(1, {}, hash_block_tokens=512), lines)
    assert tune("trace", "scale", path, "--out", tmp_path / "s.jsonl", "--prompt-scale", "0.1").exit_code == 0
    one, other = (request.prompt for request in load_trace(tmp_path / "s.jsonl").requests)
    assert (len(one), len(other)) == (100, 80)
    assert one[:51] == other[:51] and one[51:80] != other[51:]
    before, after = inspect_trace(path).sharing, inspect_trace(tmp_path / "s.jsonl").sharing
    assert before is not None and after is not None
    assert after.token_share == pytest.approx(before.token_share, abs=0.001)


def test_thinning_keeps_whole_users_and_the_time() -> None:
    trace = trace_of(*(request(f"r{i}", i / 100, tenant=f"t{i % 10}", session=f"s{i % 50}") for i in range(1000)))
    by_tenant, by_session = thinned(trace, 0.3, "tenant", 1), thinned(trace, 0.3, "session", 1)
    assert len({line.tenant for line in by_tenant.lines}) == 3 and len(by_tenant.lines) == 300
    assert len(sessions(by_session)) == 15 and len({line.tenant for line in by_session.lines}) > 3
    assert by_tenant.span == 10


def test_split_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "week.jsonl"
    write_lines(path, HeaderLine(1, {}, seconds=100), [request(f"r{i}", i, tenant=f"t{i % 5}") for i in range(100)])
    result = tune("trace", "split", path)
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            f"wrote 70 requests over 70.0 s to {tmp_path / 'week-tune.jsonl'}",
            f"wrote 30 requests over 30.0 s to {tmp_path / 'week-held-out.jsonl'}",
        ],
    )
    assert tune("trace", "split", path, "--by", "tenant", "--share", "0.4", "--seed", "2").exit_code == 0
    tuned, held = (load_trace(tmp_path / f"week-{name}.jsonl") for name in ("tune", "held-out"))
    assert (len(tuned.tenants), len(held.tenants)) == (2, 3) and not set(tuned.tenants) & set(held.tenants)
    fewer = tmp_path / "fewer.jsonl"
    assert tune("trace", "scale", path, "--out", fewer, "--keep", "0.4", "--time-scale", "2").exit_code == 0
    scaled = json.loads(fewer.read_text().splitlines()[0])
    assert scaled["seconds"] == 50 and [list(step) for step in scaled["provenance"]["steps"]] == [
        ["thinned"],
        ["time_scale"],
    ]


BAD = [
    # (the case, command and options, what the line says)
    ("a cut before the first request", ["split", "--seconds", "0"], "a cut at second 0 of 10 leaves a part without"),
    ("a cut behind the last", ["split", "--seconds", "11"], "a cut at second 11 of 10 leaves a part without requests"),
    ("a share of 1", ["split", "--share", "1"], "--share 1: expected a number between 0 and 1"),
    ("a cut by tenant", ["split", "--by", "tenant", "--seconds", "3"], "--seconds: expected with --by time"),
    ("one tenant", ["split", "--by", "tenant"], "the trace has only one tenant; expected at least two"),
    ("no scale", ["scale", "--out", "o.jsonl", "--time-scale", "0"], "--time-scale 0: expected a number above 0"),
    (
        "no length",
        ["scale", "--out", "o.jsonl", "--prompt-scale", "nan"],
        "--prompt-scale nan: expected a number above 0",
    ),
    (
        "no end of length",
        ["scale", "--out", "o.jsonl", "--prompt-scale", "1e300"],
        "expected at most 10,000,000 tokens",
    ),
    ("keep none", ["scale", "--out", "o.jsonl", "--keep", "0"], "--keep: expected a number between 0 and 1, given 0"),
]


@pytest.mark.parametrize(("options", "message"), cases(BAD))
def test_bad_request_is_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_lines(path, HeaderLine(1, {}, seconds=10), [request("a", 1), request("b", 2)])
    result = tune("trace", options[0], path, *options[1:])
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["t.jsonl"]


def test_a_session_of_two_tenants_cannot_be_divided_by_tenant() -> None:
    trace = trace_of(request("a", 0, tenant="x", session="s"), request("b", 1, tenant="y", session="s"))
    with pytest.raises(ValueError, match="request b: its session has turns of two tenants"):
        split_by_unit(trace, "tenant", 0.5, 0)
