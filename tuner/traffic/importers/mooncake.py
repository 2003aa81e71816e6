"""Traces of lengths and prefix hashes as JSON lines: Mooncake, Bailian, and what `vllm bench serve` calls timed traces.

Mooncake (Qin et al., FAST 2025; github.com/kvcache-ai/Mooncake, FAST25-release/traces): `timestamp` in ms, quantised
to 3 s in the real ones; `input_length`, `output_length`; one of `hash_ids` per 512 prompt tokens, chained.
Qwen-Bailian (github.com/alibaba-edu/qwen-bailian-usagetraces-anon; fields as in AIPerf's
docs/tutorials/bailian-trace.md): the same in seconds and blocks of 16 tokens, with `chat_id`, `parent_chat_id` (-1:
none), `type`, `turn`. Timed traces (vllm/benchmarks/datasets, `--dataset-name timed_trace`): the same keys, which may
have other names; seconds and the size of a block are options there (`--timed-trace-sec-multiplier`,
`--timed-trace-chunk-hash-size`) and here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from tuner.traffic.importers import values
from tuner.traffic.importers.columns import Columns, read_json
from tuner.traffic.importers.row import Row
from tuner.traffic.importers.source import Source

MOONCAKE_BLOCK_TOKENS, BAILIAN_BLOCK_TOKENS = 512, 16
NAMES = {
    "arrival": "timestamp",
    "prompt_tokens": "input_length",
    "output_tokens": "output_length",
    "hash_ids": "hash_ids",
}
REQUIRED = ("arrival", "prompt_tokens", "output_tokens")


def read_mooncake(source: Source) -> Iterator[Row]:
    source.block_tokens = MOONCAKE_BLOCK_TOKENS
    return read_json(source, Columns(NAMES, {"arrival": "ms"}, (*REQUIRED, "hash_ids")))


def read_timed_trace(source: Source) -> Iterator[Row]:
    return read_json(source, Columns(NAMES, {}, REQUIRED))


def read_bailian(source: Source) -> Iterator[Row]:
    source.block_tokens = BAILIAN_BLOCK_TOKENS
    roots: dict[str, str] = {}

    def parse(columns: Columns, number: int, record: Mapping[str, Any]) -> Row:
        """A conversation is named by its first chat; one that began before the trace by the chat it goes on from."""
        row = columns.row(number, record)
        parent = values.name(record.get("parent_chat_id", -1), "parent_chat_id")
        if row.id is None:
            return row
        session = row.id if parent in (None, "-1") else roots.get(str(parent), str(parent))
        roots[row.id] = session
        return replace(row, session=session)

    return read_json(source, Columns({**NAMES, "id": "chat_id"}, {"arrival": "s"}, REQUIRED), parse)
