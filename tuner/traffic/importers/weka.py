"""WEKA's agent sessions: recorded Claude Code conversations, one JSON file a session; a folder of them is one trace.

github.com/callanjfox/kv-cache-tester, docs/trace_replay_tester.md: {id, block_size 64, hash_id_scope, requests: [{t (s
from the start of the session), type "n", "s" or "subagent", in, out, hash_ids, api_time (s), think_time (s)}]}. Closed
loop: a turn starts `think_time` after the one before has ended; where that is missing, t - (t + api_time before).
hash_ids number a session's own blocks ("local"), the full ones only. A sub-agent's turns are a session of their own;
that its parent waits for it is in the parent's think time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from tuner.traffic.importers import values
from tuner.traffic.importers.columns import hash_ids
from tuner.traffic.importers.row import BadLine, Row
from tuner.traffic.importers.source import Source

LOCAL_HASHES = 2**32
"""Room for the hash ids of one session, so that those of several do not meet."""


def read(source: Source) -> Iterator[Row]:
    paths = sorted(p for p in source.path.glob("*.json*") if p.is_file()) if source.path.is_dir() else [source.path]
    if not paths:
        raise ValueError(f"{source.path}: expected files named *.json or *.json.gz, one a session")
    source.word = "file" if source.path.is_dir() else "item"
    documents = ((number, (path, number)) for number, path in enumerate(paths, start=1))
    for turns in source.rows(documents, lambda number, found: _session(source, *found)):
        yield from turns


def _session(source: Source, path: Path, number: int) -> list[Row]:
    try:
        document = msgspec.json.decode(source.document(path))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadLine(f"{path.name}: expected one JSON object; this is no JSON, or is cut off") from None
    if not isinstance(document, Mapping) or not isinstance(document.get("requests"), list):
        raise BadLine(f"{path.name}: expected a session with a list of requests")
    block_tokens = values.tokens(document.get("block_size"), "block_size")
    if source.block_tokens not in (None, block_tokens):
        raise BadLine(f"{path.name}: block_size: expected {source.block_tokens} as in the sessions before")
    source.block_tokens = block_tokens
    offset = 0 if document.get("hash_id_scope") == "global" else number * LOCAL_HASHES
    name = values.name(document.get("id"), "id") or path.name
    try:
        return list(_turns(document["requests"], name, name, number, offset))
    except BadLine as error:
        raise BadLine(f"{path.name}: {error}") from None


def _turns(requests: Sequence[Any], session: str, clock: str, number: int, offset: int) -> Iterator[Row]:
    before: int | None = None
    for position, request in enumerate(requests, start=1):
        key = f"requests[{position}]"
        if not isinstance(request, Mapping):
            raise BadLine(f"{key}: expected one JSON object")
        if request.get("type") == "subagent":
            inner = request.get("requests")
            if not isinstance(inner, list):
                raise BadLine(f"{key}.requests: expected a list")
            yield from _turns(inner, f"{session}/{request.get('agent_id') or position}", clock, number, offset)
            continue
        row = replace(_turn(request, session, number, offset, before, key), clock=clock)
        before = None if "api_time" not in request else _end(row, request, key)
        yield row


def _turn(request: Mapping[str, Any], session: str, number: int, offset: int, before: int | None, key: str) -> Row:
    """before: when the turn before ended, in ns on the session's clock."""
    arrival = values.nanoseconds(request.get("t"), "s", f"{key}.t")
    hashes = hash_ids(request.get("hash_ids"), f"{key}.hash_ids")
    if max(hashes, default=0) >= LOCAL_HASHES:
        raise BadLine(f"{key}.hash_ids: expected numbers below 2^32")
    think: float | None = None if before is None else max(0, arrival - before) / 1e9
    if request.get("think_time") is not None:
        think = max(0, values.nanoseconds(request["think_time"], "s", f"{key}.think_time")) / 1e9
    return Row(
        number=number,
        arrival=arrival,
        prompt_tokens=values.tokens(request.get("in"), f"{key}.in"),
        output_tokens=values.tokens(request.get("out"), f"{key}.out"),
        hash_ids=tuple(offset + i for i in hashes),
        session=session,
        think_time=think,
    )


def _end(row: Row, request: Mapping[str, Any], key: str) -> int:
    assert row.arrival is not None
    return row.arrival + values.nanoseconds(request["api_time"], "s", f"{key}.api_time")
