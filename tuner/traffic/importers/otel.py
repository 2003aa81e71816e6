"""OpenTelemetry GenAI spans: OTLP JSON (one document, or a line a batch as the collector's file exporter writes), and
simple dumps ({"spans": [...]}, a bare list, or a span a line) with attributes as an object and ISO times.

Names: github.com/open-telemetry/semantic-conventions-genai, docs/registry/attributes/gen-ai.md (gen_ai.operation.name,
gen_ai.usage.input_tokens, gen_ai.input.messages, gen_ai.conversation.id ...); up to 1.36 gen_ai.usage.prompt_tokens,
gen_ai.usage.completion_tokens, and prompts as gen_ai.prompt.N.role / .content (OpenLLMetry) or gen_ai.prompt. A span
is a request when its operation is chat, text_completion or generate_content, or, before there was that name, when it
names a request model and tells usage or a prompt. Failed spans are left out. A span whose parent is such a span too
goes on from it: they are one session, as are spans with one conversation id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tuner.traffic.importers import values
from tuner.traffic.importers.otlp import Span, raw_spans, span_of
from tuner.traffic.importers.row import BadLine, LeftOut, Row, Text
from tuner.traffic.importers.source import Source

OPERATIONS = ("chat", "text_completion", "generate_content")
PROMPT_TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens")
OUTPUT_TOKENS = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.usage.completion_tokens")
SESSION = ("gen_ai.conversation.id", "session.id")
ANSWER = ("gen_ai.output.text", "gen_ai.completion", "gen_ai.completion.0.content")


def read(source: Source) -> Iterator[Row]:
    sessions: dict[str, str] = {}
    source.word = "span"

    def parse(number: int, raw: Any) -> Row:
        span = span_of(raw)
        if not _is_completion(span):
            raise LeftOut("no completion")
        if span.failed:
            raise LeftOut("failed")
        return _row(number, span, sessions, source)

    yield from source.rows(enumerate(raw_spans(source), start=1), parse)


def _is_completion(span: Span) -> bool:
    operation = span.attributes.get("gen_ai.operation.name")
    if operation is not None:
        return operation in OPERATIONS
    told = (*PROMPT_TOKENS, *OUTPUT_TOKENS, "gen_ai.input.messages", "gen_ai.prompt", "gen_ai.prompt.0.content")
    kind = span.attributes.get("llm.request.type", "chat")
    return "gen_ai.request.model" in span.attributes and kind in ("chat", "completion") and bool(_first(span, told)[1])


def _row(number: int, span: Span, sessions: dict[str, str], source: Source) -> Row:
    columns, given = source.options.columns, span.attributes
    prompt_tokens = values.optional_tokens(*reversed(_first(span, PROMPT_TOKENS)))
    prompt: Text | None = None
    try:
        prompt = _prompt(span)
    except BadLine:
        if prompt_tokens is None:
            raise
        source.notes["lengths_only"] = int(str(source.notes.get("lengths_only", 0))) + 1
    if prompt is None and prompt_tokens is None:
        raise BadLine("expected gen_ai.input.messages or gen_ai.usage.input_tokens")
    if span.start is None:
        raise BadLine("expected a start time")
    return Row(
        number=number,
        arrival=span.start,
        end=span.end,
        prompt_tokens=prompt_tokens,
        output_tokens=values.optional_tokens(*reversed(_first(span, OUTPUT_TOKENS))),
        prompt=prompt,
        id=span.id,
        session=_session(span, sessions),
        tenant=values.name(given.get(columns.get("tenant", "")), "tenant"),
        slo_class=values.name(given.get(columns.get("slo_class", "")), "slo_class"),
        max_tokens=values.optional_tokens(given.get("gen_ai.request.max_tokens"), "gen_ai.request.max_tokens"),
        temperature=values.temperature(given.get("gen_ai.request.temperature"), "gen_ai.request.temperature", 0.0),
        top_p=values.top_p(given.get("gen_ai.request.top_p"), "gen_ai.request.top_p"),
        reference=_answer(span),
    )


def _session(span: Span, sessions: dict[str, str]) -> str | None:
    """Of the conversation if the span names one, else of the parent span if that is a request, else its own."""
    named = _first(span, SESSION)[1]
    if named is None:
        named = next((value for key, value in span.attributes.items() if key.endswith(".session.id")), None)
    session = values.name(named, "gen_ai.conversation.id") or sessions.get(span.parent or "") or span.id
    if span.id is not None and session is not None:
        sessions[span.id] = session
    return session


def _prompt(span: Span) -> Text | None:
    given = span.attributes
    if (said := _decoded(given.get("gen_ai.input.messages"))) is not None:
        instructions = _decoded(given.get("gen_ai.system_instructions"))
        before = [] if not instructions else [{"role": "system", "content": instructions}]
        return values.messages([*before, *said] if isinstance(said, list) else said, "gen_ai.input.messages")
    if "gen_ai.prompt.0.content" in given:
        numbered: list[dict[str, Any]] = []
        while f"gen_ai.prompt.{len(numbered)}.content" in given:
            key = f"gen_ai.prompt.{len(numbered)}"
            numbered.append({"role": given.get(f"{key}.role", "user"), "content": given[f"{key}.content"]})
        return values.messages(numbered, "gen_ai.prompt")
    said = _decoded(given.get("gen_ai.prompt"))
    if said is None or said == "":
        return None
    return values.messages(said, "gen_ai.prompt") if isinstance(said, list) else values.text(said, "gen_ai.prompt")


def _answer(span: Span) -> str | None:
    said = _decoded(span.attributes.get("gen_ai.output.messages"))
    try:
        if isinstance(said, list) and said:
            found = values.messages(said[:1], "gen_ai.output.messages")
            return str(found[0]["content"]) if isinstance(found, tuple) else None
        return values.text(_first(span, ANSWER)[1], "answer")
    except BadLine:
        return None


def _decoded(value: Any) -> Any:
    """Structured values come as such or as a JSON string; any other text is itself."""
    if not isinstance(value, str) or value[:1] not in "[{":
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return value


def _first(span: Span, keys: tuple[str, ...]) -> tuple[str, Any]:
    """(key, value) of the first attribute that is there, else (the first key, None)."""
    found: Mapping[str, Any] = span.attributes
    return next(((key, found[key]) for key in keys if found.get(key) is not None), (keys[0], None))
