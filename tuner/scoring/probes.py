"""Probes: questions to the model, and what an engine answered; raw."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

ProbeKind = Literal["forced", "recall"]
Prompt = str | tuple[int, ...] | tuple[dict[str, str], ...]
"""Text, token ids, or chat messages."""
LISTED = 64
"""The reference's likeliest tokens at each forced position, whose log-probabilities every configuration is asked."""
SCREEN, FULL, FINAL = 0, 1, 2
"""Gates: probes asked first, of those that pass, and of finalists only."""


SCREENED_RECALL = 8
"""Enough to convict what forgets most of them; 29 are needed to acquit at a floor of 0.9."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One question to the model. forced: `target` is fed token by token and scored by log-probability; an empty target
    stands for the reference's own answer. recall: the answer is generated greedily and compared with `target`.

    gate: SCREEN, FULL or FINAL. depth, length: where in the prompt the answer stands (0 the beginning, 1 the end), and
    the prompt's tokens. listed_ids: tokens to list at each target position, int32 [positions, k]; empty: LISTED of the
    likeliest.
    """

    id: str
    slice: str
    kind: ProbeKind
    prompt: Prompt
    target: str | tuple[int, ...]
    gate: int = FULL
    depth: float | None = None
    length: int | None = None
    listed_ids: bytes = b""


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """What the engine answered to one probe; raw.

    tokens, logprobs (natural log), top_tokens (argmax at each position): the forced target. For recall probes they
    are empty and `correct` says whether the generated answer equals the target. listed_logprobs: of the reference's
    likeliest tokens and, last, of all others together, float32 [positions, k + 1]; listed_ids: which, int32
    [positions, k], where it is the reference that answers. gate, depth, length: the probe's.
    """

    probe_id: str
    slice: str
    kind: ProbeKind
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_tokens: tuple[int, ...] = ()
    correct: bool | None = None
    listed_ids: bytes = b""
    listed_logprobs: bytes = b""
    gate: int = FULL
    depth: float | None = None
    length: int | None = None


def screened(probes: Sequence[Probe]) -> tuple[Probe, ...]:
    """The probes with some of each slice in gate SCREEN, unless their author has put some there: SCREENED_RECALL recall
    probes of a slice, and a quarter of the forced ones, two at least."""
    if any(probe.gate == SCREEN for probe in probes):
        return tuple(probes)
    first: set[str] = set()
    for name in sorted({probe.slice for probe in probes}):
        members = [probe for probe in probes if probe.slice == name and probe.gate == FULL]
        recall = bool(members) and members[0].kind == "recall"
        first.update(probe.id for probe in members[: SCREENED_RECALL if recall else max(len(members) // 4, 2)])
    return tuple(replace(probe, gate=SCREEN) if probe.id in first else probe for probe in probes)


def against(probes: Sequence[Probe], reference: Sequence[ProbeRecord]) -> tuple[Probe, ...]:
    """The probes as a configuration is asked them: the reference's answers as targets, and its likeliest tokens listed.

    Raises ValueError when the reference did not answer one of them.
    """
    known = {record.probe_id: record for record in reference}
    if missing := [probe.id for probe in probes if probe.id not in known]:
        raise ValueError(
            f"the reference has no answer to {len(missing)} probes, {missing[0]!r} first; measure it again"
        )
    return tuple(
        replace(probe, target=known[probe.id].tokens or probe.target, listed_ids=known[probe.id].listed_ids)
        for probe in probes
    )


def load_probes(path: Path) -> tuple[Probe, ...]:
    """Read probes from JSONL, one {"id", "slice", "kind", "prompt", "target"} a line, "gate", "depth" and "length"
    as in Probe if known; blank lines are skipped.

    Raises ValueError naming file and line; prompts and targets are never quoted.
    """
    try:
        # Not splitlines(): JSON may hold U+2028 and its kin inside a text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text; expected probes, one JSON object a line") from None
    probes: dict[str, Probe] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        probe = _parse_probe(line, f"{path}:{number}")
        if probe.id in probes:
            raise ValueError(f"{path}:{number}: id {probe.id!r} is used twice")
        probes[probe.id] = probe
    if not probes:
        raise ValueError(f"{path}: no probes; expected one JSON object a line")
    check_slices(list(probes.values()), str(path))
    return tuple(probes.values())


def _parse_probe(line: str, where: str) -> Probe:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(values).__name__}")
    for key in values.keys() - _KEYS:
        near = difflib.get_close_matches(key, _KEYS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"a probe has {', '.join(_KEYS)}"
        raise ValueError(f"{where}: {key}: unknown key; {hint}")
    for name in ("id", "slice", "kind", "prompt", "target"):
        if not isinstance(values.get(name), str) or not values[name]:
            raise ValueError(f"{where}: {name}: expected a text that is not empty")
    if values["kind"] not in get_args(ProbeKind):
        raise ValueError(f"{where}: kind: expected {' or '.join(get_args(ProbeKind))} (given: {values['kind']!r})")
    _check_numbers(values, where)
    return Probe(**values)


def _check_numbers(values: Mapping[str, Any], where: str) -> None:
    expected = (("gate", int, 0, FINAL), ("depth", float, 0, 1), ("length", int, 1, 2**31))
    for name, kind, low, high in expected:
        given = values.get(name, low)
        if isinstance(given, bool) or not isinstance(given, int | kind) or not low <= given <= high:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{where}: {name}: expected {what} from {low} to {high} (given: {given!r})")


_KEYS = tuple(field.name for field in fields(Probe) if field.name != "listed_ids")


def check_slices(probes: Sequence[Probe | ProbeRecord], where: str) -> None:
    """Raises ValueError for a slice of two kinds, and for one that has too few probes for any bound."""
    for name in sorted({probe.slice for probe in probes}):
        members = [probe for probe in probes if probe.slice == name]
        if len({probe.kind for probe in members}) > 1:
            raise ValueError(f"{where}: slice {name!r} mixes forced and recall probes; give each kind its own slice")
        asked = sum(probe.gate <= FULL for probe in members)
        if not asked:
            raise ValueError(
                f"{where}: slice {name!r} has probes of gate {FINAL} only; a trial would prove nothing of it"
            )
        if members[0].kind == "forced" and asked < 2:
            raise ValueError(f"{where}: slice {name!r} has one forced probe; a bound needs at least two")
        if members[0].kind == "forced" and sum(probe.gate == SCREEN for probe in members) == 1:
            raise ValueError(
                f"{where}: slice {name!r} has one forced probe of gate {SCREEN}; a bound needs at least two"
            )
