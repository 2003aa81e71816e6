"""A trace file as numbers: arrivals, lengths, shared prefixes, tenants, classes, sessions, and what is doubtful."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UnsetType

from tuner.traffic.facts import Facts, facts_of
from tuner.traffic.statistics import (
    ArrivalStatistics,
    LengthStatistics,
    PrefixSharing,
    arrival_statistics,
    length_statistics,
    prefix_sharing,
)
from tuner.traffic.synthesis import MADE_OF_LENGTHS
from tuner.traffic.trace_doubts import TraceDoubt, trace_doubts
from tuner.traffic.trace_lines import TraceReader, arranged


@dataclass(frozen=True, slots=True)
class Group:
    """The requests of one tenant or class. share: of all requests; prompt_share: of all prompt tokens."""

    name: str
    share: float
    prompt_share: float
    arrivals: ArrivalStatistics
    prompt: LengthStatistics
    output: LengthStatistics | None


@dataclass(frozen=True, slots=True)
class Sessions:
    """Conversations. requests: those that are part of one. think_p50: seconds, None where no turn tells it."""

    sessions: int
    requests: int
    turns_p50: float
    turns_max: int
    think_p50: float | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything that `tune trace inspect` tells. requests: the facts behind it, in order of arrival."""

    name: str
    provenance: dict[str, Any]
    requests: tuple[Facts, ...]
    arrivals: ArrivalStatistics
    prompt: LengthStatistics
    output: LengthStatistics | None
    sharing: PrefixSharing | None
    classes: tuple[Group, ...]
    tenants: tuple[Group, ...]
    sessions: Sessions | None
    doubts: tuple[TraceDoubt, ...]

    def summary(self) -> dict[str, Any]:
        """All but the single requests, as JSON takes it."""
        return {name: value for name, value in asdict(replace(self, requests=())).items() if name != "requests"}


def inspect_trace(path: Path) -> Inspection:
    """Read and describe a trace file; prompts are read one at a time. Raises ValueError as load_trace does."""
    reader = TraceReader(path)
    key = secrets.token_bytes(16)
    requests = [facts_of(line, reader.header.hash_block_tokens, key) for line in reader]
    if reader.header.provenance.get("prompts") == MADE_OF_LENGTHS:
        requests = [replace(one, hashes=None) for one in requests]
    provenance = arranged(reader, requests)
    seconds = reader.header.seconds
    span = requests[-1].arrival if isinstance(seconds, UnsetType) else seconds
    known = [(one.hashes, one.prompt_tokens, one.block_tokens) for one in requests if one.hashes is not None]
    prompt = length_statistics([one.prompt_tokens for one in requests])
    assert prompt is not None
    return Inspection(
        name=path.name,
        provenance=provenance,
        requests=tuple(requests),
        arrivals=arrival_statistics(np.array([one.arrival for one in requests]), span),
        prompt=prompt,
        output=_outputs(requests),
        sharing=prefix_sharing(known),
        classes=_groups(requests, span, lambda one: one.slo_class),
        tenants=_groups(requests, span, lambda one: one.tenant),
        sessions=_sessions(requests),
        doubts=trace_doubts(requests, span, provenance),
    )


def _outputs(requests: Iterable[Facts]) -> LengthStatistics | None:
    return length_statistics([one.output_tokens for one in requests if one.output_tokens is not None])


def _groups(requests: Sequence[Facts], span: float, name_of: Callable[[Facts], str]) -> tuple[Group, ...]:
    """One group a name, the largest first."""
    members: dict[str, list[Facts]] = {}
    for one in requests:
        members.setdefault(name_of(one), []).append(one)
    tokens = sum(one.prompt_tokens for one in requests)
    groups = []
    for name, found in members.items():
        prompt = length_statistics([one.prompt_tokens for one in found])
        assert prompt is not None
        arrivals = arrival_statistics(np.array([one.arrival for one in found]), span)
        groups.append(
            Group(name, len(found) / len(requests), prompt.total / max(1, tokens), arrivals, prompt, _outputs(found))
        )
    return tuple(sorted(groups, key=lambda group: (-group.arrivals.requests, group.name)))


def _sessions(requests: Iterable[Facts]) -> Sessions | None:
    turns = Counter(one.session for one in requests if one.session is not None)
    if not turns:
        return None
    thinks = [one.think_time for one in requests if one.think_time is not None]
    return Sessions(
        sessions=len(turns),
        requests=turns.total(),
        turns_p50=float(np.median(list(turns.values()))),
        turns_max=max(turns.values()),
        think_p50=float(np.median(thinks)) if thinks else None,
    )
