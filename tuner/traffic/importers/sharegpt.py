"""ShareGPT: one JSON array of {"id", "conversations": [{"from", "value"}]}, the default file of vLLM, SGLang and
AIPerf.

As vllm/benchmarks/datasets/sharegpt.py reads it, but every turn: a request for each human message that has an answer,
with all messages before it. No arrivals and no think times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tuner.traffic.importers import values
from tuner.traffic.importers.row import BadLine, LeftOut, Row
from tuner.traffic.importers.source import Source

ROLES = {
    "system": "system", "human": "user", "user": "user",
    "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "assistant": "assistant",
}  # fmt: skip


def read(source: Source) -> Iterator[Row]:
    for turns in source.rows(source.json_records(), _turns):
        yield from turns


def _turns(number: int, record: Any) -> list[Row]:
    said = record.get("conversations") if isinstance(record, Mapping) else None
    if not isinstance(said, list):
        raise BadLine("conversations: expected a list")
    messages = [_message(turn) for turn in said]
    session = values.name(record.get("id"), "id") or f"item-{number}"
    rows = []
    for position in range(1, len(messages)):
        question, answer = messages[position - 1], messages[position]
        if (question["role"], answer["role"]) == ("user", "assistant"):
            rows.append(
                Row(number, session=session, prompt=tuple(messages[:position]), reference=answer["content"] or None)
            )
    if not rows:
        raise LeftOut("no question with an answer")
    return rows


def _message(turn: Any) -> dict[str, str]:
    role = ROLES.get(str(turn.get("from"))) if isinstance(turn, Mapping) else None
    if role is None:
        raise BadLine(f"conversations.from: expected one of {', '.join(ROLES)}")
    return {"role": role, "content": values.joined_text(turn.get("value"), "conversations.value")}
