"""OpenAI's batch input: JSON lines {"custom_id", "method", "url", "body"}; vLLM's run_batch reads the same.

platform.openai.com/docs/guides/batch. Lines to /v1/chat/completions and /v1/completions are requests, `body` is theirs.
No arrivals. `body.user` is the tenant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tuner.traffic.importers import values
from tuner.traffic.importers.row import BadLine, LeftOut, Row
from tuner.traffic.importers.source import Source

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def read(source: Source) -> Iterator[Row]:
    return source.rows(source.json_records(), _row)


def _row(number: int, record: Any) -> Row:
    body = record.get("body") if isinstance(record, Mapping) else None
    if not isinstance(body, Mapping):
        raise BadLine("expected one JSON object with a body")
    url = str(record.get("url")).removesuffix("/")
    if not url.endswith((CHAT, COMPLETIONS)):
        raise LeftOut("no completion")
    if (body.get("n") or 1) != 1:
        raise LeftOut("several answers to one prompt")
    chat = url.endswith(CHAT)
    key = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    return Row(
        number=number,
        id=values.name(record.get("custom_id"), "custom_id"),
        tenant=values.name(body.get("user"), "body.user"),
        prompt=(
            values.messages(body.get("messages"), "body.messages")
            if chat
            else values.text(body.get("prompt"), "body.prompt")
        ),
        max_tokens=values.optional_tokens(body.get(key), f"body.{key}"),
        temperature=values.temperature(body.get("temperature"), "body.temperature", 1.0),
        top_p=values.top_p(body.get("top_p"), "body.top_p"),
        top_k=0 if body.get("top_k") in (None, -1) else values.tokens(body["top_k"], "body.top_k"),
        seed=values.seed(body.get("seed"), "body.seed"),
    )
