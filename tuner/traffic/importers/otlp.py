"""Spans out of the files that hold them, whatever the exporter.

OTLP JSON: github.com/open-telemetry/opentelemetry-proto, opentelemetry/proto/trace/v1/trace.proto in the JSON mapping
of docs/specification/protocol/otlp.md: resourceSpans[].scopeSpans[].spans[] (instrumentationLibrarySpans before 0.15),
attributes as [{key, value: {stringValue | intValue | ...}}], times as decimal strings of nanoseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tuner.traffic.importers import values
from tuner.traffic.importers.row import BadLine
from tuner.traffic.importers.source import Source

_INT64 = re.compile(r"-?[0-9]{1,19}")
FAILED = (2, "2", "STATUS_CODE_ERROR", "ERROR")


@dataclass(frozen=True, slots=True)
class Span:
    """start, end: nanoseconds since 1970. attributes: plain values; those of events named gen_ai.* are among them."""

    id: str | None
    parent: str | None
    start: int | None
    end: int | None
    failed: bool
    attributes: Mapping[str, Any]


def raw_spans(source: Source) -> Iterator[Any]:
    for document in _documents(source):
        if isinstance(document, list):
            yield from document
        elif isinstance(document, Mapping) and isinstance(document.get("resourceSpans"), list):
            for resource in document["resourceSpans"]:
                for key in ("scopeSpans", "instrumentationLibrarySpans"):
                    for scope in resource.get(key) or [] if isinstance(resource, Mapping) else []:
                        yield from (scope.get("spans") or []) if isinstance(scope, Mapping) else []
        elif isinstance(document, Mapping) and isinstance(document.get("spans"), list):
            yield from document["spans"]
        else:
            yield document


def _documents(source: Source) -> Iterator[Any]:
    """The one JSON value of the file, or that of each line."""
    try:
        yield msgspec.json.decode(source.document(source.path))
        return
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    yield from (document for _, document in source.json_records())


def span_of(raw: Any) -> Span:
    if not isinstance(raw, Mapping):
        raise BadLine("expected a span as one JSON object")
    attributes = _attributes(raw.get("attributes"))
    for event in raw.get("events") or []:
        if isinstance(event, Mapping):
            attributes = {**_attributes(event.get("attributes")), **attributes}
    status = raw.get("status")
    context = raw.get("context") if isinstance(raw.get("context"), Mapping) else {}
    code = status.get("code", status.get("status_code")) if isinstance(status, Mapping) else status
    return Span(
        id=values.name(_either(raw, "spanId", "span_id") or (context or {}).get("span_id"), "span_id"),
        parent=values.name(_either(raw, "parentSpanId", "parent_span_id", "parent_id"), "parent_span_id"),
        start=_time(raw, "startTimeUnixNano", "start_time"),
        end=_time(raw, "endTimeUnixNano", "end_time"),
        failed=code in FAILED or "error.type" in attributes,
        attributes=attributes,
    )


def _either(raw: Mapping[str, Any], *keys: str) -> Any:
    return next((raw[key] for key in keys if raw.get(key)), None)


def _time(raw: Mapping[str, Any], nano: str, iso: str) -> int | None:
    if raw.get(nano):
        return values.nanoseconds(raw[nano], "ns", nano)
    return values.iso_nanoseconds(raw[iso], iso) if raw.get(iso) else None


def _attributes(raw: Any) -> dict[str, Any]:
    if isinstance(raw, Mapping):
        return dict(raw)
    found = {}
    for pair in raw if isinstance(raw, list) else []:
        if isinstance(pair, Mapping) and isinstance(pair.get("key"), str):
            found[pair["key"]] = _value(pair.get("value"))
    return found


def _value(raw: Any) -> Any:
    """An AnyValue of OTLP as a plain one; 64-bit integers come as text."""
    if not isinstance(raw, Mapping) or len(raw) != 1:
        return None
    ((kind, value),) = raw.items()
    if kind == "intValue":
        return int(value) if isinstance(value, str) and _INT64.fullmatch(value) else value
    if kind == "arrayValue" and isinstance(value, Mapping):
        return [_value(item) for item in value.get("values") or []]
    if kind == "kvlistValue" and isinstance(value, Mapping):
        return _attributes(value.get("values"))
    return value
