"""LiteLLM's spend logs: an export of the table LiteLLM_SpendLogs as CSV, JSON lines or one JSON array (`/spend/logs`).

Columns from github.com/BerriAI/litellm, schema.prisma: request_id, call_type, startTime, endTime (UTC without a zone),
prompt_tokens, completion_tokens, session_id, team_id, status, cache_hit. Failed calls, calls answered from LiteLLM's
own cache and calls that are no completions are left out. The tenant is the team; messages are never read: the column
is empty unless `store_prompts_in_spend_logs` is on, and then it is private.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tuner.traffic.importers.columns import Columns, read_csv, read_json
from tuner.traffic.importers.row import LeftOut, Row
from tuner.traffic.importers.source import Source

COLUMNS = Columns(
    {
        "arrival": "startTime",
        "end": "endTime",
        "prompt_tokens": "prompt_tokens",
        "output_tokens": "completion_tokens",
        "id": "request_id",
        "session": "session_id",
        "tenant": "team_id",
    },
    {"arrival": "iso", "end": "iso"},
    ("arrival", "prompt_tokens", "output_tokens"),
)
COMPLETIONS = frozenset(
    (
        "completion",
        "acompletion",
        "text_completion",
        "atext_completion",
        "anthropic_messages",
        "responses",
        "aresponses",
    )
)


def read(source: Source) -> Iterator[Row]:
    if source.first_byte() in (b"[", b"{"):
        return read_json(source, COLUMNS, _served)
    return read_csv(source, COLUMNS, _served)


def _served(columns: Columns, number: int, record: Mapping[str, Any]) -> Row:
    if isinstance(record, Mapping):
        if str(record.get("status") or "success") != "success":
            raise LeftOut("failed")
        if str(record.get("cache_hit")).lower() == "true":
            raise LeftOut("answered from the proxy's cache")
        if (record.get("call_type") or "completion") not in COMPLETIONS:
            raise LeftOut("no completion")
    return columns.row(number, record)
