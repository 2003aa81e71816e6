"""Anonymous traces: shape and sharing stay, nothing that was said does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from tests.fakes import cases
from tuner.cli.__main__ import app
from tuner.traffic.anonymize import KEY_VARIABLE, Anonymizer
from tuner.traffic.inspection import inspect_trace
from tuner.traffic.trace_file import load_trace
from tuner.traffic.trace_lines import Message, RequestLine, read_lines

KEY, OTHER_KEY = b"a key of the tests, 32 bytes ...", b"another key of the tests, 32 b.."


def tune(*args: str | Path, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, list(map(str, args)), env=env)


def write(path: Path, lines: Sequence[dict[str, Any]], **header: Any) -> Path:
    texts = [json.dumps({"servetune_trace": 1, "provenance": {"file": "private.csv"}, **header})]
    texts += [
        json.dumps({"id": f"mine-{i}", "arrival": i / 4, "max_tokens": 9, **line}) for i, line in enumerate(lines)
    ]
    path.write_text("\n".join(texts) + "\n")
    return path


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def hashes(prompt: Any, key: bytes = KEY, tokens: int | None = None, chars: float = 4.0) -> list[int]:
    line = RequestLine("a", 0.0, 9)
    if isinstance(prompt, str):
        line.prompt = prompt
    else:
        line.prompt_token_ids = list(prompt)
    if tokens is not None:
        line.prompt_tokens = tokens
    found = Anonymizer(key, 16, chars).line(line, "a").hash_ids
    assert isinstance(found, list)
    return found


token_ids = st.lists(st.integers(0, 40), min_size=1, max_size=80)
texts = st.text(min_size=1, max_size=300)


@settings(max_examples=200)
@given(beginning=token_ids, one=token_ids, other=token_ids)
def test_tokens_share_as_many_hashes_as_whole_blocks(beginning: list[int], one: list[int], other: list[int]) -> None:
    first, second = beginning + one, beginning + other
    ids = hashes(first), hashes(second)
    shared = common(*ids)
    assert not set(ids[0][shared:]) & set(ids[1][shared:]), "a hash stands for all that came before it"
    if first == second:
        assert shared == -(-len(first) // 16)
    else:
        assert shared == common(first, second) // 16


@settings(max_examples=200)
@given(beginning=texts, one=texts, other=texts, dense=st.floats(0.3, 3))
def test_texts_share_as_many_hashes_as_whole_blocks(beginning: str, one: str, other: str, dense: float) -> None:
    """Whatever tokens the server counted: hashes are as many as the blocks these fill, equal for equal beginnings,
    and different as soon as the texts differ anywhere."""
    first, second = beginning + one, beginning + other
    counts = [max(1, round(len(text) / 4 * dense)) for text in (first, second)]
    found = [hashes(text, tokens=count) for text, count in zip((first, second), counts, strict=True)]
    assert [len(ids) for ids in found] == [-(-count // 16) for count in counts]
    shared = common(*found)
    if first == second:
        assert found[0] == found[1]
    else:
        assert min(common(first, second) // 64, min(map(len, found)) - 1) <= shared < max(map(len, found))
        assert shared * 64 <= common(first, second) or shared * 64 <= min(len(first), len(second)) + 63


@pytest.mark.parametrize("tokens", [16, 40, 250, 400])
def test_texts_that_differ_in_their_last_letter_differ_in_their_last_hash(tokens: int) -> None:
    """1,000 letters: more, or fewer, than the tokens fill at 4 letters each."""
    one, other = (hashes("a" * 999 + end, tokens=tokens) for end in "xy")
    assert one != other and len(one) == len(other)
    assert common(one, other) == min(len(one) - 1, 999 // 64)


@settings(max_examples=100)
@given(prompt=token_ids | texts)
def test_other_keys_give_unlinkable_hashes(prompt: Any) -> None:
    assert not set(hashes(prompt)) & set(hashes(prompt, OTHER_KEY))
    assert hashes(prompt) == hashes(prompt)


def test_the_next_turn_of_a_conversation_shares_the_last_one() -> None:
    turns = [Message("user", "u" * 200), Message("assistant", "a" * 200), Message("user", "v" * 200)]
    lines = [RequestLine("a", 0.0, 9, endpoint="chat", messages=turns[:n]) for n in (1, 2, 3)]
    one, two, three = (Anonymizer(KEY).line(line, "a").hash_ids for line in lines)
    assert isinstance(one, list) and isinstance(two, list) and isinstance(three, list)
    assert common(one, two) == 3 and common(two, three) == 6


LINES = [
    # (the case, lines)
    (
        "text, answers, seeds, names",
        [
            {"prompt": "Dear Ada, the tide turns at noon. " * 8, "tenant": "lovelace", "reference": "Thank you kindly",
             "seed": 4242424242, "output_tokens": 7, "prompt_tokens": 70},
            {"prompt": "Dear Ada, the tide turns at noon. " * 8, "tenant": "babbage", "slo_class": "chat"},
        ],
    ),
    (
        "messages of a session",
        [
            {"messages": [{"role": "user", "content": "the tide " * 20}], "endpoint": "chat", "session": "lovelace"},
            {"messages": [{"role": "user", "content": "the tide " * 30}], "endpoint": "chat", "session": "lovelace",
             "think_time": 2.5},
        ],
    ),
    ("token ids", [{"prompt_token_ids": list(range(500, 540))}, {"prompt_token_ids": list(range(500, 560))}]),
    (
        "hashes",
        [{"prompt_tokens": 900, "hash_ids": [700123456789, 72]}, {"prompt_tokens": 600, "hash_ids": [700123456789]}],
    ),
    ("lengths alone", [{"prompt_tokens": 900}, {"prompt_tokens": 70, "output_tokens": 3}]),
]  # fmt: skip


@pytest.mark.parametrize("lines", cases(LINES))
def test_shape_stays_and_text_goes(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    source, out, key = write(tmp_path / "t.jsonl", lines, seconds=10), tmp_path / "out.jsonl", tmp_path / "key"
    key.write_bytes(KEY + b"\n")
    result = tune("trace", "anonymize", source, "--out", out, "--key-file", key)
    assert (result.exit_code, result.stdout) == (0, f"wrote 2 requests over 10.0 s to {out}\n")
    before, after, text = inspect_trace(source), inspect_trace(out), out.read_text()
    for one, other in zip(before.requests, after.requests, strict=True):
        assert (one.arrival, one.output_tokens, one.slo_class) == (other.arrival, other.output_tokens, other.slo_class)
        assert one.prompt_tokens == pytest.approx(other.prompt_tokens, rel=0.3)
        assert one.think_time == other.think_time
    assert len({one.tenant for one in before.requests}) == len({one.tenant for one in after.requests})
    assert (before.sessions is None) == (after.sessions is None)
    assert (before.sharing is None) == (after.sharing is None)
    if before.sharing is not None and after.sharing is not None:
        assert after.sharing.token_share == pytest.approx(before.sharing.token_share, abs=0.1)
    for secret in ("Ada", "tide", "lovelace", "babbage", "kindly", "4242424242", "500,501", "700123456789",
                   "mine", "private",
                   KEY.decode(), KEY.hex()):  # fmt: skip
        assert secret not in text, secret
    assert load_trace(out).seconds == 10
    again = tmp_path / "again.jsonl"
    assert tune("trace", "anonymize", source, "--out", again, env={KEY_VARIABLE: KEY.decode()}).exit_code == 0
    assert again.read_bytes() == out.read_bytes(), "the same key, from the environment"
    assert again.stat().st_mode & 0o777 == 0o600


PROMPT = st.text(st.characters(min_codepoint=0x3041, max_codepoint=0x3096), min_size=2, max_size=60)
"""Letters that occur nowhere else in a trace."""


@settings(max_examples=50)
@given(words=st.lists(PROMPT, min_size=1, max_size=4))
def test_no_character_of_the_text_remains(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp()
    lines = [{"prompt": word, "tenant": word, "session": word, "reference": word} for word in words]
    source, out, key = write(base / "t.jsonl", lines), base / "out.jsonl", base / "key"
    key.write_bytes(KEY)
    assert tune("trace", "anonymize", source, "--out", out, "--key-file", key).exit_code == 0
    assert out.read_text().isascii()
    assert not set("".join(words)) & set(json.dumps([json.loads(t) for t in out.read_text().splitlines()]))


def test_hashes_keep_their_block(tmp_path: Path) -> None:
    lines = [{"prompt_tokens": 60, "hash_ids": [1, 2]}, {"prompt_token_ids": list(range(16, 76))}]
    source, out, key = write(tmp_path / "t.jsonl", lines, hash_block_tokens=32), tmp_path / "o.jsonl", tmp_path / "key"
    key.write_bytes(KEY)
    assert tune("trace", "anonymize", source, "--out", out, "--key-file", key).exit_code == 0
    trace = read_lines(out)
    assert trace.header.hash_block_tokens == 32
    assert [len(line.hash_ids) for line in trace.lines] == [2, 2]  # type: ignore[arg-type]


BAD_KEYS = [
    # (the case, contents of the key file, environment, what the line says)
    ("no key at all", None, {}, f"${KEY_VARIABLE}: no key; expected a secret"),
    ("too short", b"secret", {}, "key: expected a key of at least 16 bytes, given 6"),
    ("empty", b"\n", {}, "key: no key; expected a secret"),
    ("too short in the environment", None, {KEY_VARIABLE: "secret"}, f"${KEY_VARIABLE}: expected a key of at least 16"),
]


@pytest.mark.parametrize(("content", "env", "message"), cases(BAD_KEYS))
def test_bad_key_is_one_line_without_the_key(
    content: bytes | None, env: dict[str, str], message: str, tmp_path: Path
) -> None:
    source, key = write(tmp_path / "t.jsonl", [{"prompt_tokens": 9}]), tmp_path / "key"
    options = [] if content is None else ["--key-file", key]
    if content is not None:
        key.write_bytes(content)
    result = tune("trace", "anonymize", source, "--out", tmp_path / "o.jsonl", *options, env={KEY_VARIABLE: "", **env})
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert "secret" not in result.stderr.replace("a secret", "")
    assert not (tmp_path / "o.jsonl").exists()


def test_blocks_below_16_tokens_are_refused(tmp_path: Path) -> None:
    source, key = write(tmp_path / "t.jsonl", [{"prompt_tokens": 9}]), tmp_path / "key"
    key.write_bytes(KEY)
    options = ("--out", tmp_path / "o.jsonl", "--key-file", key, "--block-tokens", "8")
    result = tune("trace", "anonymize", source, *options)
    assert result.exit_code == 2 and "block_tokens: expected at least 16, given 8" in result.stderr
