"""What all importers share: windows, limits, scales, clocks, prompts made up or kept, and bad lines by their
numbers."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tuner.cli.__main__ import app
from tuner.traffic.importers.importer import FORMATS, Imported
from tuner.traffic.importers.importer import import_trace as import_with
from tuner.traffic.importers.options import ImportOptions
from tuner.traffic.importers.row import BadLine
from tuner.traffic.importers.text import TextMeasure
from tuner.traffic.importers.values import nanoseconds
from tuner.traffic.trace import Trace
from tuner.traffic.trace_file import load_trace, save_trace

FIXTURES = Path(__file__).parent / "fixtures"
AZURE = FIXTURES / "azure_small.csv"
MOONCAKE = FIXTURES / "mooncake_small.jsonl"
TOKENIZER = Path(__file__).parents[3] / "engine/mini/mini/tokenizer.json"


def imported(path: Path, format: str, **options: Any) -> Imported:
    return import_with(path, format, ImportOptions(**options))


def import_trace(path: Path, format: str, **options: Any) -> Trace:
    return imported(path, format, **options).trace


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
def test_options(options: dict[str, Any], expected: list[tuple[int, int]]) -> None:
    assert lengths(import_trace(AZURE, "azure", **options)) == expected


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


@settings(max_examples=60)
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


HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
GOOD = '{"timestamp": 1, "input_length": 9, "output_length": 1, "hash_ids": [1]}\n'
NO_TEXT = '{"custom_id": "a", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": [%s]}]}}'
CAT = '[{"conversations": [{"from": "cat", "value": "secret"}]}]'
BODY = '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "p", "max_tokens": 1, %s}}\n'
BAD_SOURCES = [
    ("azure", "a column is missing", "TIMESTAMP,ContextTokens\n", "line 1: expected the columns TIMESTAMP"),
    ("azure", "empty file", "", "TIMESTAMP is missing"),
    ("azure", "no rows", HEADER, "holds no request"),
    ("azure", "bad time", HEADER + "yesterday,1,1\n", "line 2: TIMESTAMP: expected a time"),
    ("azure", "bad fraction", HEADER + "2024-01-01 00:00:00.x,1,1\n", "line 2: TIMESTAMP"),
    ("azure", "no such day", HEADER + "2024-02-30 00:00:00,1,1\n", "line 2: TIMESTAMP"),
    ("azure", "negative", HEADER + "2024-01-01 00:00:00,-1,1\n", "line 2: ContextTokens"),
    ("azure", "a fraction of a token", HEADER + "2024-01-01 00:00:00,1.5,1\n", "line 2: ContextTokens"),
    ("azure", "short row", HEADER + "2024-01-01 00:00:00,1\n", "line 2: GeneratedTokens: expected, but missing"),
    ("azure", "not text", HEADER + "\xff\xfe,1,1\n", "line 2: TIMESTAMP"),
    ("mooncake", "no JSON", GOOD + "{", "line 2: expected one JSON value"),
    ("mooncake", "not text", GOOD + "\xff\xfe", "line 2: expected one JSON value"),
    ("mooncake", "a key is missing", '{"timestamp": 1}\n', "line 1: input_length: expected, but missing"),
    ("mooncake", "negative length", GOOD.replace("9", "-9"), "input_length"),
    ("mooncake", "length is true", GOOD.replace("9", "true"), "input_length"),
    ("mooncake", "time is text", GOOD.replace("1,", '"now",', 1), "timestamp: expected a number of ms"),
    ("mooncake", "time is infinite", GOOD.replace("1,", "1e999,", 1), "line 1: expected one JSON value"),
    ("mooncake", "time of another age", GOOD.replace("1,", "9e17,", 1), "timestamp: no time before 2097, read as ms"),
    ("mooncake", "hash is text", GOOD.replace("[1]", '["1"]'), "hash_ids: expected a list"),
    ("mooncake", "a list", "[[1]]", "item 1: expected one JSON object"),
    ("mooncake", "spans a century", GOOD + GOOD.replace("1,", "3e12,", 1), "is the unit of the arrivals right"),
    ("mooncake", "empty file", "", "holds no request"),
    ("mooncake", "cut gzip", "\x1f\x8b\x08", "damaged"),
    ("sharegpt", "no array", "[1, 2", "expected a JSON array"),
    ("sharegpt", "no conversation", "[{}]", "item 1: conversations: expected a list"),
    ("sharegpt", "unknown speaker", CAT, "item 1: conversations.from: expected one of system"),
    ("openai-batch", "no body", '{"custom_id": "a"}', "line 1: expected one JSON object with a body"),
    (
        "openai-batch",
        "an image",
        NO_TEXT % '{"type": "image_url"}',
        "line 1: body.messages: holds a part that is no text",
    ),
    ("openai-batch", "half a character", NO_TEXT % '"\\ud800"', "line 1: "),
    ("weka", "no session", "[]", "expected a session with a list of requests"),
    ("servegen", "no dataset", "0,1,1,Gamma,1,1\n", "expected its lengths beside it, in source-dataset.json"),
    ("otel", "a number", "7", "span 1: expected a span as one JSON object"),
    ("lengths", "no rate", "num_prefill_tokens,num_decode_tokens\n1,1\n2,2\n", "--rate: expected starts a second"),
    ("vllm-timed-trace", "no unit", GOOD, "--unit arrival: expected s, ms, us, ns or iso"),
    ("otel", "the second span", '[{"name": "x"}, 7]', "span 2: expected a span as one JSON object"),
    ("openai-batch", "a seed of more bits", BODY % '"seed": 9e30', "line 1: body.seed: expected a whole number of 64"),
    ("openai-batch", "no nucleus", BODY % '"top_p": 0', "line 1: body.top_p: expected a number from"),
    ("azure", "another millennium", HEADER + "9999-12-31 23:59:59,1,1\n", "line 2: TIMESTAMP: no time before 2097"),
    ("csv", "nothing mapped", "a,b\n1,2\n", "--map: expected prompt_tokens=COLUMN or prompt=COLUMN"),
    ("azur", "unknown format", "", "did you mean azure?"),
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
        import_trace(path, format, **({"limit": 9} if format == "servegen" else {}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


SOURCES = [
    ("azure_small.csv", {"format": "azure"}),
    ("bailian_small.jsonl", {"format": "bailian"}),
    ("burstgpt_v12.csv", {"format": "burstgpt"}),
    ("litellm_small.csv", {"format": "litellm"}),
    ("openai_batch.jsonl", {"format": "openai-batch", "rate": 1.0}),
    ("otel_otlp.json", {"format": "otel"}),
    ("otel_older.jsonl", {"format": "otel"}),
    ("sharegpt_small.json", {"format": "sharegpt", "rate": 1.0, "max_tokens": 9}),
    ("weka_small/session_a.json", {"format": "weka", "rate": 1.0}),
]
ODDITIES = [
    b"null",
    b"-1",
    b"1e400",
    b"9" * 40,
    b"[]",
    b"{}",
    b'""',
    b'"1e999999"',
    b"\x00",
    b"\xff",
    b'"\\ud800"',
    b",",
    b"\n",
]


@settings(max_examples=150)
@given(
    source=st.sampled_from(SOURCES), where=st.floats(0, 1), length=st.integers(0, 30), oddity=st.sampled_from(ODDITIES)
)
def test_a_damaged_source_is_imported_or_refused_in_one_line(
    source: tuple[str, dict[str, Any]],
    where: float,
    length: int,
    oddity: bytes,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path, whole = tmp_path_factory.getbasetemp() / "damaged", (FIXTURES / source[0]).read_bytes()
    start = round(where * len(whole))
    path.write_bytes(whole[:start] + oddity + whole[start + length :])
    try:
        trace = import_trace(path, **source[1])
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        save_trace(trace, path.with_name("trace.jsonl"))
        assert len(load_trace(path.with_name("trace.jsonl")).requests) == len(trace.requests)


def test_a_time_with_a_huge_exponent_is_refused_before_it_is_a_number() -> None:
    for text in ("1e999999", "-1e999999999", "nan", "inf"):
        with pytest.raises(BadLine, match="at: "):
            nanoseconds(text, "s", "at")


BAD_OPTIONS = [
    ("unit of nothing", {"units": {"end": "s"}}, "--unit end: no column is mapped to it"),
    ("unknown unit", {"units": {"arrival": "minutes"}}, "--unit arrival: expected one of s, ms"),
    ("unknown field", {"columns": {"promt": "x"}}, "did you mean prompt?"),
    ("no such column", {"columns": {"tenant": "team"}}, "line 1: expected the columns"),
    ("rate where arrivals are told", {"rate": 3.0}, "--rate: the source tells its own arrivals"),
    ("rate 0", {"rate": 0.0}, "--rate 0: expected a number above 0"),
    ("length scale 0", {"length_scale": 0.0}, "--length-scale 0: expected a number above 0"),
    ("negative CV", {"cv": -1.0}, "--cv -1: expected a number from 0 on"),
    ("no tokenizer", {"tokenizer": AZURE}, "no tokenizer.json"),
]


@pytest.mark.parametrize(("options", "message"), [r[1:] for r in BAD_OPTIONS], ids=[r[0] for r in BAD_OPTIONS])
def test_bad_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        import_trace(AZURE, "azure", **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_out_of_order_rows_are_sorted_and_a_repeated_id_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [("a", 3.0), ("b", 1.0), ("a", 9.0), ("c", 2.0)]
    path.write_text("\n".join(json.dumps({"id": i, "at": at, "n": 4}) for i, at in rows))
    columns = {"id": "id", "arrival": "at", "prompt_tokens": "n"}
    found = imported(path, "jsonl", columns=columns, units={"arrival": "s"}, max_tokens=1)
    assert [(r.id, r.arrival) for r in found.trace.requests] == [("b", 0.0), ("c", 1.0), ("a", 2.0)]
    assert found.trace.provenance["out_of_order"] == 1
    assert found.left_out == {"same id as a row before": 1}


CLOCKS = [
    # (the case, seconds in the source, the option, within how much of them the arrivals must lie, jittered or not)
    ("whole seconds that requests share", [0, 1, 1, 4, 4, 4], None, 1, True),
    ("whole seconds, none shared: nothing arrives together", [0, 1, 2, 4, 7], None, 0, False),
    ("ten seconds", [10, 10, 20, 40, 40], None, 10, True),
    ("fine, though two share a time", [0.25, 1.5, 1.5, 4.125], None, 0, False),
    ("all at once is no clock", [5, 5, 5], None, 0, False),
    ("left as it is", [0, 1, 1, 4], 0.0, 0, False),
    ("declared", [0.0, 0.5, 0.5, 2.0], 0.5, 0.5, True),
]


@pytest.mark.parametrize(("times", "tick", "width", "jittered"), [r[1:] for r in CLOCKS], ids=[r[0] for r in CLOCKS])
def test_a_coarse_clock_gets_places_within_its_ticks(
    times: list[float], tick: float | None, width: float, jittered: bool, tmp_path: Path
) -> None:
    path = tmp_path / "log.csv"
    path.write_text("at,n\n" + "".join(f"{at},{i + 1}\n" for i, at in enumerate(times)))
    columns, units = {"arrival": "at", "prompt_tokens": "n"}, {"arrival": "s"}
    trace = import_trace(path, "csv", columns=columns, units=units, max_tokens=1, tick=tick)
    late = [request.arrival - (at - times[0]) for request, at in zip(trace.requests, times, strict=True)]
    assert all(0 <= delay <= width for delay in late)
    assert [r.prompt_tokens for r in trace.requests] == list(range(1, len(times) + 1)), "order within a tick is kept"
    assert ("jitter" in trace.provenance) is jittered
    assert any(delay > 0 for delay in late) is jittered


LENGTHS = FIXTURES / "lengths_small.csv"


def test_drawn_arrivals_have_the_rate_and_the_cv_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n" + "1,1\n" * 10_000)
    gaps = np.diff([r.arrival for r in import_trace(path, "lengths", rate=8.0, cv=2.5).requests])
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.08)
    assert gaps.std() / gaps.mean() == pytest.approx(2.5, rel=0.08)
    even = import_trace(LENGTHS, "lengths", rate=4.0, cv=0.0)
    assert [r.arrival for r in even.requests] == [0.0, 0.25, 0.5]


def bad_log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    good = "2024-01-01 00:00:0{},9,9\n"
    path.write_text(HEADER + good.format(0) + "My secret diary,1,1\n" + good.format(1) + "2024-01-01 00:00:02,x,1\n")
    return path


def test_bad_lines_are_left_out_up_to_the_limit_and_reported_with_their_numbers(tmp_path: Path) -> None:
    found = imported(bad_log(tmp_path), "azure", max_bad_lines=2)
    assert [number for number, _ in found.bad_lines] == [3, 5]
    assert len(found.trace.requests) == 2
    assert found.trace.provenance["bad_lines"] == 2
    assert "secret" not in json.dumps(found.trace.provenance)
    with pytest.raises(ValueError, match="line 5: ContextTokens: .*; more than 1 bad lines"):
        imported(bad_log(tmp_path), "azure", max_bad_lines=1)


def test_the_command_line_reports_bad_lines_and_stops_with_2(tmp_path: Path) -> None:
    log, out = str(bad_log(tmp_path)), tmp_path / "trace.jsonl"
    command = ["trace", "import", log, "--format", "azure", "--out", str(out)]
    stopped = CliRunner().invoke(app, command)
    assert (stopped.exit_code, out.exists()) == (2, False)
    assert "line 3: TIMESTAMP" in stopped.output
    assert "secret" not in stopped.output
    passed = CliRunner().invoke(app, [*command, "--max-bad-lines", "2"])
    assert passed.exit_code == 0, passed.output
    assert "wrote 2 requests over 1.0 s" in passed.output
    assert "left out line 3: TIMESTAMP" in passed.output
    assert "left out line 5: ContextTokens" in passed.output
    assert "secret" not in passed.output
    assert len(load_trace(out).requests) == 2


def test_the_command_line_maps_columns(tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl"
    options = ["--map", "arrival=msec", "--unit", "arrival=ms", "--map", "prompt_tokens=upstream.usage.in"]
    options += ["--map", "output_tokens=upstream.usage.out", "--map", "tenant=key", "--map", "id=rid"]
    command = ["trace", "import", str(FIXTURES / "gateway_log.jsonl"), "--format", "jsonl", "--out", str(out), *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = [(r.id, r.arrival, r.tenant, r.prompt_tokens, r.output_tokens) for r in load_trace(out).requests]
    assert found == [("x1", 0.0, "red", 12, 3), ("x2", 1.25, "blue", 20, 4)]


def test_times_are_exact_in_every_unit(tmp_path: Path) -> None:
    for unit, digits in (("s", 10), ("ms", 13), ("us", 16), ("ns", 19)):
        path = tmp_path / "log.csv"
        times = ("1700000000000000000", "1700000000123456789")
        path.write_text("at,n\n" + "".join(f"{time[:digits]}.{time[digits:]},1\n" for time in times))
        columns, units = {"arrival": "at", "prompt_tokens": "n"}, {"arrival": unit}
        requests = import_trace(path, "csv", columns=columns, units=units, max_tokens=1).requests
        assert requests[1].arrival == 0.123456789, unit


def test_text_is_kept_or_replaced_by_tokens_of_the_same_length_that_share_as_much(tmp_path: Path) -> None:
    text = "The tide tables of the harbour are printed twice a year and hang beside the door of the lock keeper. "
    path = tmp_path / "custom.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text * 3 + end, "output_tokens": 5}) for end in ("One.", "Two?")))
    kept = import_trace(path, "vllm-custom", rate=1.0)
    assert [r.prompt for r in kept.requests] == [text * 3 + "One.", text * 3 + "Two?"]
    replaced = import_trace(path, "vllm-custom", rate=1.0, replace_text=True, tokenizer=TOKENIZER)
    first, second = (request.prompt for request in replaced.requests)
    assert isinstance(first, tuple)
    assert len(first) == import_trace(path, "vllm-custom", rate=1.0, tokenizer=TOKENIZER).requests[0].prompt_tokens
    shared = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    assert len(first) - 32 <= shared < len(first)
    with pytest.raises(ValueError, match="line 1: the source tells no length in tokens; give --tokenizer"):
        import_trace(path, "vllm-custom", rate=1.0, replace_text=True)
    with pytest.raises(ValueError, match="line 1: text has no other length; give --replace-text"):
        import_trace(path, "vllm-custom", rate=1.0, length_scale=0.5)


def test_blocks_are_numbered_by_all_that_came_before_them() -> None:
    measure, block, other = TextMeasure(TOKENIZER), list(range(16)), list(range(16, 32))
    first = measure.shared_blocks([*block, *other, 7])
    assert len(first) == 2, "the tail is no full block"
    assert measure.shared_blocks([*block, *other, *block])[:2] == first
    assert not set(measure.shared_blocks([*other, *other])) & set(first), "equal blocks after another beginning"


def test_what_is_past_the_window_is_let_go_but_what_comes_late_is_not(tmp_path: Path) -> None:
    """Row 3 is far past the window of the earliest row so far and past that of the last, which moves the origin
    back."""
    path = tmp_path / "log.csv"
    path.write_text("at,n\n" + "".join(f"{at},{n}\n" for at, n in ((1000, 1), (1005, 2), (9000, 3), (990, 4))))
    columns, units = {"arrival": "at", "prompt_tokens": "n"}, {"arrival": "s"}
    trace = import_trace(path, "csv", columns=columns, units=units, max_tokens=1, end=12.0)
    assert [(r.prompt_tokens, r.arrival) for r in trace.requests] == [(4, 0.0), (1, 10.0)]


def test_blank_lines_inside_a_quoted_prompt_stay(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text('\nt,p,o\n1,"a\n\nb",5\n\n2,c,x\n')
    columns = {"arrival": "t", "prompt": "p", "output_tokens": "o"}
    found = imported(tmp_path / "log.csv", "csv", columns=columns, units={"arrival": "s"}, max_bad_lines=1)
    assert [request.prompt for request in found.trace.requests] == ["a\n\nb"]
    assert [number for number, _ in found.bad_lines] == [7], "the line where the bad record ends, blank ones counted"


def test_a_seed_of_64_bits_is_kept(tmp_path: Path) -> None:
    (tmp_path / "batch.jsonl").write_text(BODY % f'"seed": {-(2**63)}')
    (request,) = import_trace(tmp_path / "batch.jsonl", "openai-batch", rate=1.0, max_tokens=1).requests
    assert request.seed == -(2**63)


@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if not format.mapped])
def test_names_cannot_be_mapped_where_the_layout_is_known(format: str) -> None:
    with pytest.raises(ValueError, match=f"^--map, --unit: {format} has one layout"):
        import_trace(Path("never read"), format, columns={"arrival": "ts"})
