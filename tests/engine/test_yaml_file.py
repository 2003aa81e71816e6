"""YAML that a user writes: what is taken, and where a mistake is said to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.yaml_file import read_mapping
from tests.fakes import cases

TAKEN = [
    ("plain", "a: 1\nb: {c: [1, 2]}\n", {"a": 1, "b": {"c": [1, 2]}}),
    ("JSON", '{"a": 1, "b": null}', {"a": 1, "b": None}),
    ("line ends of Windows", "a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    ("a byte order mark", "\ufeffa: 1\n", {"a": 1}),
    ("a date, which is text", "a: 2026-11-28\n", {"a": "2026-11-28"}),
    ("a date that is none", "a: 2026-13-45\n", {"a": "2026-13-45"}),
    ("a merged key, overridden", "x: &x {a: 1}\ny: {<<: *x, a: 2}\n", {"x": {"a": 1}, "y": {"a": 2}}),
    (
        "merged from what is merged itself",
        "y: &y {k: 0}\nc: {d: &x {<<: *y, k: 1}}\nb: {<<: *x, k: 2}\n",
        {"y": {"k": 0}, "c": {"d": {"k": 1}}, "b": {"k": 2}},
    ),
]
REFUSED = [
    ("nothing", "", "expected a mapping, found nothing"),
    ("a list", "- a\n", "expected a mapping, found a list"),
    ("text", "budget", "expected a mapping, found text"),
    ("a key twice", "a: 1\n\na: 2\n", "line 3, column 1: a: expected once, but line 1 has this key too"),
    ("a nested key twice", "a: {b: 1, b: 2}\n", "line 1, column 11: b: expected once"),
    ("a key twice in JSON", '{"a": 1,\n "a": 2}', "line 2, column 2: a: expected once, but line 1 has this key too"),
    ("a tab", "a: 1\n\tb: 2\n", r"line 2, column 1: not YAML: .*'\\t' that cannot start any token \(the line: b: 2\)"),
    ("no colon", "a: x\ntrials 24\nb: 3\n", r"line 2, column 1: not YAML: .* expected ':' \(the line: trials 24\)"),
    ("two colons", "a: b: c\n", r"line 1, column 5: not YAML: mapping values are not allowed here \(the line: a: b: c"),
    (
        "a bracket left open",
        "a: [\nb",
        "line 2, column 2: not YAML: while parsing a flow sequence",
    ),
    (
        "a quote left open",
        "a: 'b\nc: d\n",
        "line 3, column 1: not YAML: .* that begins in line 1, found un",
    ),
    ("two documents", "a: 1\n---\nb: 2\n", "line 2, column 1: not YAML: expected a single document"),
    ("an unknown alias", "a: *b\n", "line 1, column 4: found undefined alias 'b'"),
    ("lines of JSON", '{"a": 1}\n{"b": 2}\n', "line 2, column 1: not YAML: expected '<document start>'"),
    ("a control character", "a: 1\nb: \0\n", r"line 2, column 4: not YAML: the character U\+0000"),
    ("a tag of Python's", "a: !!python/object:os.system x\n", "line 1, column 4: not YAML: could not determine"),
    ("a tag that does not fit", "a: !!bool perhaps\n", "line 1, column 4: not YAML: expected bool"),
    ("a number beyond all bounds", f"a: {'9' * 5000}\n", "line 1, column 4: not YAML: expected int"),
    ("brackets without end", "[" * 5000, "nested too deeply"),
    ("bytes", b"\xff\xfe\x00", "not UTF-8 text"),
]


@pytest.mark.parametrize(("text", "values"), cases(TAKEN))
def test_what_is_taken(tmp_path: Path, text: str, values: dict[str, Any]) -> None:
    (tmp_path / "a.yaml").write_bytes(text.encode())
    assert read_mapping(tmp_path / "a.yaml") == values


@pytest.mark.parametrize(("text", "message"), cases(REFUSED))
def test_a_mistake_is_told_by_its_place(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=rf"^{path}: {message}") as told:
        read_mapping(path)
    assert "\n" not in str(told.value) and len(str(told.value)) < 300


def test_what_is_no_file(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "none.yaml", "No such file or directory")):
        with pytest.raises(ValueError, match=f"^{path}: cannot be read: {why}$"):
            read_mapping(path)
