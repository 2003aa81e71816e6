"""Single values of a source, checked. Raise BadLine, naming the key and what was expected, never the value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from tuner.traffic.importers.options import UNITS
from tuner.traffic.importers.row import BadLine, Text

MOST_TOKENS = 10_000_000
MOST_NANOSECONDS = 4 * 10**18
"""In the year 2096, as a time since 1970."""
MOST_DIGITS = 20
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?\s?(Z|[+-]\d\d:?\d\d|[+-]\d\d)?")


def tokens(value: object, key: str) -> int:
    """A number of tokens, as a number or as text."""
    digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12
    if isinstance(value, str | float) and (digits or (isinstance(value, float) and value.is_integer())):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_TOKENS:
        raise BadLine(f"{key}: expected a whole number of tokens, 0 to {MOST_TOKENS}")
    return value


def optional_tokens(value: object, key: str) -> int | None:
    return None if value is None or value == "" else tokens(value, key)


def nanoseconds(value: object, unit: str, key: str) -> int:
    """A point in time or a duration, exactly, in the unit that was declared. unit: of UNITS."""
    if unit == "iso":
        return iso_nanoseconds(value, key)
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise InvalidOperation
        number = Decimal(value if isinstance(value, str) else repr(value))
    except (InvalidOperation, ValueError):
        raise BadLine(f"{key}: expected a number of {unit}") from None
    time = round(number * UNITS[unit]) if number.is_finite() and number.adjusted() < MOST_DIGITS else None
    if time is None or abs(time) > MOST_NANOSECONDS:
        raise BadLine(f"{key}: no time before 2097, read as {unit}; is that the unit?")
    return time


def iso_nanoseconds(value: object, key: str) -> int:
    """Nanoseconds since 1970 of "2023-11-16 18:17:03.9799600", "...T...Z" or "...+01:00"; without a zone: UTC."""
    match = _ISO.fullmatch(value.strip()) if isinstance(value, str) else None
    try:
        if match is None:
            raise ValueError
        day, clock, fraction, zone = match.groups()
        moment = datetime.fromisoformat(f"{day}T{clock}{zone or ''}")
    except ValueError:
        raise BadLine(f"{key}: expected a time as YYYY-MM-DD HH:MM:SS.fff, with or without Z or +HH:MM") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    time = int(moment.timestamp()) * 10**9 + int(f"{fraction or '':0<9}")
    if abs(time) > MOST_NANOSECONDS:
        raise BadLine(f"{key}: no time before 2097")
    return time


def name(value: object, key: str) -> str | None:
    """An id, tenant, class or session; numbers become text, nothing and "" None."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadLine(f"{key}: expected a text")
    text = str(value)
    if len(text) > 200 or not _is_unicode(text):
        raise BadLine(f"{key}: expected a text of up to 200 characters")
    return text


def text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value or not _is_unicode(value):
        raise BadLine(f"{key}: expected a text that is not empty")
    return value


def temperature(value: object, key: str, default: float) -> float:
    return default if value is None else _number(value, key, 0.0, 100.0)


def top_p(value: object, key: str) -> float:
    return 1.0 if value is None else _number(value, key, 1e-9, 1.0)


def _number(value: object, key: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise BadLine(f"{key}: expected a number from {least:g} to {most:g}")
    return float(value)


def seed(value: object, key: str) -> int | None:
    if value is not None and (type(value) is not int or not -(2**63) <= value < 2**63):
        raise BadLine(f"{key}: expected a whole number of 64 bits")
    return value


def messages(value: object, key: str) -> Text:
    """Chat messages as OpenAI or OpenTelemetry write them: content as text or as parts; parts that are no text make the
    line bad, for what would be replayed without them is another request."""
    if not isinstance(value, list) or not value:
        raise BadLine(f"{key}: expected a list of messages")
    found = []
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not message["role"]:
            raise BadLine(f"{key}: expected messages with a role")
        content = message.get("content") if "content" in message else message.get("parts")
        found.append({"role": message["role"], "content": joined_text(content, key)})
    return tuple(found)


def joined_text(content: Any, key: str) -> str:
    """Text as such, or the texts of its parts ({"type": "text", "text" or "content": ...}) joined."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    found = []
    for part in parts:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "input_text", "output_text"):
            raise BadLine(f"{key}: holds a part that is no text")
        piece = part.get("text", part.get("content"))
        if not isinstance(piece, str) or not _is_unicode(piece):
            raise BadLine(f"{key}: expected text")
        found.append(piece)
    return "".join(found)


def _is_unicode(value: str) -> bool:
    """Not so for the half characters that JSON can spell and no file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
