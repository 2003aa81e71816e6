"""Trace files: what is saved is loaded again, agrees with the published schema, and bad lines are named."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.traffic import trace_lines
from tuner.traffic.trace import Request, Trace, opened_sessions
from tuner.traffic.trace_file import load_trace, save_trace

SCHEMA = json.loads((Path(trace_lines.__file__).parent / "trace.schema.json").read_text())
HEADER = jsonschema.Draft202012Validator({**SCHEMA, "oneOf": [{"$ref": "#/$defs/header"}]})
REQUEST = jsonschema.Draft202012Validator({**SCHEMA, "oneOf": [{"$ref": "#/$defs/request"}]})
HEADER_LINE = '{"servetune_trace": 1, "provenance": {}}'
GOOD: dict[str, Any] = {"id": "a", "arrival": 0.5, "prompt": "What is the tide?", "max_tokens": 8}

text = st.text(min_size=1, max_size=20)
tokens = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9).map(tuple)
messages = st.lists(st.fixed_dictionaries({"role": text, "content": st.text(max_size=9)}), min_size=1, max_size=3)
count = st.integers(0, 10_000_000)


@st.composite
def requests(draw: st.DrawFn, number: int) -> Request:
    chat = draw(st.booleans())
    return Request(
        id=f"r{number}",
        arrival=draw(st.floats(0, 1e9)),
        tenant=draw(text),
        slo_class=draw(text),
        prompt=draw(messages.map(tuple) if chat else st.one_of(text, tokens)),
        max_tokens=draw(st.integers(1, 10_000_000)),
        endpoint="chat" if chat else "completions",
        prompt_tokens=draw(st.none() | st.integers(1, 10_000_000)),
        output_tokens=draw(st.none() | count),
        temperature=draw(st.floats(0, 100)),
        top_p=draw(st.floats(0, 1, exclude_min=True)),
        top_k=draw(count),
        seed=draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
        reference=draw(st.none() | st.text(max_size=9)),
        output_tokens_estimated=draw(st.booleans()),
        session=draw(st.none() | st.sampled_from(["s", "t"])),
    )


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    found = [draw(requests(number)) for number in range(draw(st.integers(1, 4)))]
    found.sort(key=lambda request: request.arrival)
    turns = [r if r.session is None else replace(r, think_time=draw(st.none() | st.floats(0, 1e9))) for r in found]
    provenance = draw(st.dictionaries(text, text | st.integers(0, 9), max_size=2))
    return Trace(opened_sessions(turns), provenance, draw(st.none() | st.just(1e9)))


@settings(max_examples=150)
@given(trace=traces())
def test_saved_trace_loads_equal_and_validates(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.jsonl"
    save_trace(trace, path)
    assert load_trace(path) == trace
    header, *lines = path.read_bytes().splitlines()
    HEADER.validate(json.loads(header))
    for line in lines:
        REQUEST.validate(json.loads(line))


def line(drop: str | None = None, **changes: Any) -> str:
    return json.dumps({key: value for key, value in {**GOOD, **changes}.items() if key != drop})


CHAT = [{"role": "user", "content": "hi"}]
BAD_LINES = [
    # (the case, the line, the key that the message names)
    ("no id", line(drop="id"), "id"),
    ("empty id", line(id=""), "id"),
    ("id is a number", line(id=7), "id"),
    ("arrival before the start", line(arrival=-0.1), "arrival"),
    ("arrival is text", line(arrival="0.5"), "arrival"),
    ("arrival beyond any trace", line(arrival=1e10), "arrival"),
    ("no arrival", line(drop="arrival"), "arrival"),
    ("no max_tokens", line(drop="max_tokens"), "max_tokens"),
    ("max_tokens 0", line(max_tokens=0), "max_tokens"),
    ("max_tokens true", line(max_tokens=True), "max_tokens"),
    ("max_tokens with a fraction", line(max_tokens=1.5), "max_tokens"),
    ("unknown key", line(slo_clas="chat"), "slo_clas"),
    ("empty tenant", line(tenant=""), "tenant"),
    ("tenant null", line(tenant=None), "tenant"),
    ("unknown endpoint", line(endpoint="embeddings"), "endpoint"),
    ("no prompt of any kind", line(drop="prompt"), "prompt"),
    ("empty prompt", line(prompt=""), "prompt"),
    ("text and token ids", line(prompt_token_ids=[17]), "prompt_token_ids"),
    ("text and messages", line(messages=CHAT, endpoint="chat"), "messages"),
    ("negative token id", line(drop="prompt", prompt_token_ids=[17, -1]), "prompt_token_ids"),
    ("no token ids", line(drop="prompt", prompt_token_ids=[]), "prompt_token_ids"),
    ("messages to completions", line(drop="prompt", messages=CHAT), "endpoint"),
    ("text to chat", line(endpoint="chat"), "endpoint"),
    ("lengths to chat", line(drop="prompt", prompt_tokens=4, endpoint="chat"), "endpoint"),
    ("message without content", line(drop="prompt", endpoint="chat", messages=[{"role": "user"}]), "content"),
    ("message with parts", line(drop="prompt", endpoint="chat", messages=[{"role": "u", "content": []}]), "content"),
    ("hashes beside a text", line(hash_ids=[1]), "hash_ids"),
    ("negative hash", line(drop="prompt", prompt_tokens=4, hash_ids=[-1]), "hash_ids"),
    ("length 0", line(drop="prompt", prompt_tokens=0), "prompt_tokens"),
    ("negative output", line(output_tokens=-1), "output_tokens"),
    ("temperature below 0", line(temperature=-1), "temperature"),
    ("top_p 0", line(top_p=0), "top_p"),
    ("top_p above 1", line(top_p=1.01), "top_p"),
    ("top_k below 0", line(top_k=-1), "top_k"),
    ("seed is text", line(seed="1"), "seed"),
    ("empty session", line(session=""), "session"),
    ("think time without a session", line(think_time=1), "think_time"),
    ("negative think time", line(session="s", think_time=-1), "think_time"),
    ("reference is a list", line(reference=["a"]), "reference"),
    ("a list", "[1, 2]", "object"),
]


@pytest.mark.parametrize(("bad", "key"), [row[1:] for row in BAD_LINES], ids=[row[0] for row in BAD_LINES])
def test_bad_line_is_refused_by_loader_and_schema(bad: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{HEADER_LINE}\n{line(id='before')}\n{bad}\n")
    with pytest.raises(ValueError, match="line 3") as caught:
        load_trace(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: line 3: ")
    assert key in message
    assert "\n" not in message
    assert "tide" not in message, "a prompt must not reach an error message"
    assert not REQUEST.is_valid(json.loads(bad))


GOOD_LINES = [
    ("text", GOOD),
    ("token ids", {"id": "a", "arrival": 0, "prompt_token_ids": [16, 17], "max_tokens": 1}),
    ("chat", {"id": "a", "arrival": 0, "messages": CHAT, "endpoint": "chat", "max_tokens": 1}),
    ("length", {"id": "a", "arrival": 0, "prompt_tokens": 40, "max_tokens": 1}),
    ("length and hashes", {"id": "a", "arrival": 0, "prompt_tokens": 40, "hash_ids": [3], "max_tokens": 1}),
]


@pytest.mark.parametrize("good", [row[1] for row in GOOD_LINES], ids=[row[0] for row in GOOD_LINES])
def test_each_kind_of_prompt_is_taken_by_loader_and_schema(good: dict[str, Any], tmp_path: Path) -> None:
    REQUEST.validate(good)
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{HEADER_LINE}\n{json.dumps(good)}\n")
    (request,) = load_trace(path).requests
    assert request.id == "a"
    if "prompt_tokens" in good:
        assert isinstance(request.prompt, tuple)
        assert len(request.prompt) == good["prompt_tokens"]


BAD_FILES = [
    ("empty file", "", "line 1"),
    ("no header", line() + "\n", "line 1"),
    ("header only", HEADER_LINE + "\n", "holds no request"),
    ("another version", '{"servetune_trace": 2, "provenance": {}}\n' + line(), "expected version 1"),
    ("header without provenance", '{"servetune_trace": 1}\n' + line(), "provenance: expected, but missing"),
    ("same id twice", f"{HEADER_LINE}\n{line()}\n{line()}\n", "line 3: id: 'a' is already used in line 2"),
    ("NaN", f"{HEADER_LINE}\n" + line().replace("0.5", "NaN"), "line 2: expected one request as one JSON object"),
    ("infinite", f"{HEADER_LINE}\n" + line().replace("0.5", "1e999"), "line 2: arrival"),
    ("cut off before the last line", f"{HEADER_LINE}\n{line()[:30]}\n{line()}\n", "line 2: expected one request"),
    ("cut off before any request ended", f"{HEADER_LINE}\n{line()[:30]}", "holds no request"),
    ("last line wrong, not cut off", f"{HEADER_LINE}\n{line()}\n" + line(id="b")[1:], "line 3: expected"),
    ("not text", f"{HEADER_LINE}\n\xff\xfe\n", "line 2"),
    ("first turn thinks", f"{HEADER_LINE}\n{line(session='s', think_time=1)}\n", "request a: think_time: expected no"),
    ("seconds before the end", HEADER_LINE[:-1] + ', "seconds": 0.1}\n' + line(), "seconds: expected at least"),
]


@pytest.mark.parametrize(("content", "message"), [row[1:] for row in BAD_FILES], ids=[row[0] for row in BAD_FILES])
def test_bad_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="trace.jsonl: ") as caught:
        load_trace(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["messages", "prompt"])
def test_last_line_cut_off_at_any_byte_is_reported_and_left_out(
    key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What kill -9 of a recorder in the middle of a write leaves."""
    values = {"prompt": 'hä \U0001f30a "tide" \\', "messages": [{"role": "user", "content": "hä \U0001f30a"}]}
    bare = {name: value for name, value in GOOD.items() if name != "prompt"}
    last = {**bare, "id": "b", "arrival": 1.25e-3, "output_tokens_estimated": True, "seed": -3, key: values[key]}
    last["endpoint"] = "chat" if key == "messages" else "completions"
    whole = json.dumps(last, ensure_ascii=False).encode()
    path = tmp_path / "trace.jsonl"
    for length in range(1, len(whole)):
        path.write_bytes(f"{HEADER_LINE}\n{line()}\n".encode() + whole[:length])
        trace = load_trace(path)
        assert [request.id for request in trace.requests] == ["a"]
        assert trace.provenance == {"cut_off_line": 3}
    assert "line 3: cut off" in caplog.text and "tide" not in caplog.text
    path.write_bytes(f"{HEADER_LINE}\n{line()}\n".encode() + whole)
    assert len(load_trace(path).requests) == 2, "a last line without its newline is whole"


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{HEADER_LINE}\n{line(max_token=3)}\n")
    with pytest.raises(ValueError, match="max_token: unknown key; did you mean max_tokens"):
        load_trace(path)


def test_missing_file_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        load_trace(tmp_path / "none.jsonl")


def test_over_long_line_is_refused_without_reading_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_lines, "MAX_LINE_BYTES", 100)
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{HEADER_LINE}\n{line()}\n{line(id='b', prompt='x' * 100)}\n")
    with pytest.raises(ValueError, match="line 3: longer than 100 bytes"):
        load_trace(path)


def test_unsorted_lines_are_sorted_and_noted(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join([HEADER_LINE, line(id="late", arrival=2), "", line(id="early", arrival=1)]))
    trace = load_trace(path)
    assert [request.id for request in trace.requests] == ["early", "late"]
    assert trace.provenance["sorted_on_load"] is True


def test_equal_leading_hashes_give_equal_leading_tokens_on_load(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [("a", [1, 2]), ("b", [1, 3])]
    header = '{"servetune_trace": 1, "provenance": {}, "hash_block_tokens": 8}'
    lines = [line(drop="prompt", id=name, prompt_tokens=16, hash_ids=hashes) for name, hashes in rows]
    path.write_text("\n".join([header, *lines]))
    first, second = (request.prompt for request in load_trace(path, vocab_size=100).requests)
    assert first[:8] == second[:8]
    assert first[8:] != second[8:]
    assert all(isinstance(token, int) and 16 <= token < 100 for token in (*first, *second))


def trace_of(*arrivals: float) -> Trace:
    found = (Request(f"r{i}", at, f"t{i % 2}", "chat", "hello", 4) for i, at in enumerate(arrivals))
    return Trace(tuple(found), {"source": "here"})


def test_window_is_half_open_and_rebased() -> None:
    cut = trace_of(0.0, 9.5, 10.0, 19.5, 20.0).window(10, 20)
    assert [(request.id, request.arrival) for request in cut.requests] == [("r2", 0.0), ("r3", 9.5)]
    assert cut.span == 10
    assert cut.provenance == {"source": "here", "window": [10, 20]}
    assert cut.tenants == ("t0", "t1")
    assert cut.slo_classes == ("chat",)


def test_window_keeps_the_turns_inside_and_starts_the_first_at_its_arrival() -> None:
    turns = [("a1", 1, "a", None), ("b1", 2, "b", None), ("a2", 5, "a", 3.0), ("x", 6, None, None), ("a3", 9, "a", 2.0)]
    found = (Request(i, at, "t", "c", "hello", 4, session=of, think_time=think) for i, at, of, think in turns)
    cut = Trace(tuple(found), {}).window(4, 20)
    assert [(r.id, r.arrival, r.session, r.think_time) for r in cut.requests] == [
        ("a2", 1, "a", None),
        ("x", 2, None, None),
        ("a3", 5, "a", 2.0),
    ]


@pytest.mark.parametrize(("start", "end"), [(30, 40), (5, 5), (-1, 5), (6, 5)])
def test_window_without_requests_is_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match="trace window"):
        trace_of(0.0, 20.0).window(start, end)


def test_span_without_known_length_is_the_last_arrival() -> None:
    assert trace_of(1.0, 7.0).span == 7.0


@pytest.mark.parametrize("arrival", [float("nan"), float("inf"), -1.0])
def test_save_refuses_what_load_would_and_keeps_the_old_file(arrival: float, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    save_trace(trace_of(0.0), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="request r1: arrival"):
        save_trace(trace_of(0.0, arrival), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["trace.jsonl"]


def test_lone_surrogate_is_refused_on_save(tmp_path: Path) -> None:
    bad = Trace((Request("r0", 0.0, "t", "c", "\ud800", 1),), {})
    with pytest.raises(ValueError, match="request r0: text that is not Unicode"):
        save_trace(bad, tmp_path / "trace.jsonl")


def test_saved_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    save_trace(trace_of(0.0), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
