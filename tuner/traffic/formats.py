"""Traces that others published, turned into ours: Azure LLM inference 2023 (CSV) and Mooncake (JSONL, also .gz).

Both tell lengths only; prompts are made by synthesis.py.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from tuner.traffic.synthesis import DEFAULT_BLOCK_TOKENS, DEFAULT_VOCAB_SIZE, PromptSynthesizer
from tuner.traffic.trace import Request, Trace

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
AZURE_TICKS = 10_000_000
"""Timestamps count 100 ns: seven decimals of a second, one more than datetime keeps."""
MOONCAKE_TICK_MS = 3000
SOURCES = {
    "azure": "Azure LLM inference trace 2023 (Patel et al., Splitwise, ISCA 2024), CC-BY 4.0",
    "mooncake": "Mooncake trace (Qin et al., FAST 2025), Apache-2.0",
}


class Row(NamedTuple):
    """One request of a published trace. arrival: seconds from the first row; lengths in tokens."""

    arrival: float
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()


def import_trace(
    path: Path,
    format: str,
    *,
    limit: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    seed: int = 0,
    tenant: str = "default",
    slo_class: str = "default",
    length_scale: float = 1.0,
    max_prompt_tokens: int | None = None,
    max_output_tokens: int | None = None,
    vocab_size: int = DEFAULT_VOCAB_SIZE,
) -> Trace:
    """Read a published trace. format: "azure" or "mooncake".

    start, end: seconds of the source, [start, end), rebased to 0; limit: then the first so many requests. A length L
    becomes clamp(round(L * length_scale), 1, max). Prompts are token ids below vocab_size drawn from `seed`; equal
    leading prefix hashes (Mooncake, 512 tokens before scaling) give equal leading tokens. Raises ValueError naming
    file, line and column.
    """
    if format not in SOURCES:
        raise ValueError(f"format: expected one of {', '.join(SOURCES)}, given {format!r}")
    if not length_scale > 0:
        raise ValueError(f"length_scale: expected a number above 0, given {length_scale}")
    rows, notes = _azure(path) if format == "azure" else _mooncake(path, seed)
    rows = [row for row in rows if start <= row.arrival and (end is None or row.arrival < end)][:limit]
    if not rows:
        until = "its end" if end is None else f"{end:g}"
        raise ValueError(f"{path}: holds no request from second {start:g} to {until}")
    options = {
        "limit": limit, "start": start, "end": end, "seed": seed, "length_scale": length_scale,
        "vocab_size": vocab_size, "max_prompt_tokens": max_prompt_tokens, "max_output_tokens": max_output_tokens,
    }  # fmt: skip
    provenance = {"source": SOURCES[format], "file": path.name, "sha256": _digest(path), "import": options, **notes}
    synthesizer = PromptSynthesizer(seed, vocab_size, DEFAULT_BLOCK_TOKENS * length_scale)
    requests = tuple(
        Request(
            id=f"{format}-{index:06d}",
            arrival=row.arrival - start,
            tenant=tenant,
            slo_class=slo_class,
            prompt=synthesizer.prompt(row.prompt_tokens, index, row.hash_ids),
            max_tokens=row.output_tokens,
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
        )
        for index, row in enumerate(_scaled(row, length_scale, max_prompt_tokens, max_output_tokens) for row in rows)
    )
    return Trace(requests, provenance, seconds=end - start if end is not None and limit is None else None)


def _scaled(row: Row, scale: float, max_prompt_tokens: int | None, max_output_tokens: int | None) -> Row:
    def clamped(tokens: int, most: int | None) -> int:
        scaled = max(1, round(tokens * scale))
        return scaled if most is None else min(scaled, most)

    return row._replace(
        prompt_tokens=clamped(row.prompt_tokens, max_prompt_tokens),
        output_tokens=clamped(row.output_tokens, max_output_tokens),
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file or of a gzip file, which is known by its first two bytes."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            source = gzip.GzipFile(fileobj=raw) if packed else raw
            with io.TextIOWrapper(source, encoding="utf-8", newline="") as text:
                yield from text
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged: {type(error).__name__}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def _azure(path: Path) -> tuple[list[Row], dict[str, object]]:
    reader = csv.DictReader(_lines(path))
    missing = [name for name in AZURE_COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{path}: line 1: expected the columns {', '.join(AZURE_COLUMNS)}; {missing[0]} is missing")
    stamps, lengths = [], []
    for record in reader:
        where = f"{path}: line {reader.line_num}"
        stamps.append(_ticks(record["TIMESTAMP"], where))
        lengths.append((_count(record, "ContextTokens", where), _count(record, "GeneratedTokens", where)))
    first = min(stamps, default=0)
    rows = [Row((stamp - first) / AZURE_TICKS, *pair) for stamp, pair in zip(stamps, lengths, strict=True)]
    return sorted(rows, key=lambda row: row.arrival), {}


def _ticks(stamp: str | None, where: str) -> int:
    """100 ns ticks since 1970 of "2023-11-16 18:17:03.9799600", exactly."""
    seconds, _, fraction = (stamp or "").partition(".")
    try:
        moment = datetime.strptime(seconds, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        return int(moment.timestamp()) * AZURE_TICKS + int(f"{fraction:0<7}"[:7])
    except ValueError:
        raise ValueError(f"{where}: TIMESTAMP: expected YYYY-MM-DD HH:MM:SS.fffffff, given {stamp!r}") from None


def _count(record: dict[str, str | None], column: str, where: str) -> int:
    text = record[column] or ""
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{where}: {column}: expected a number of tokens, given {text!r}")
    return int(text)


class _MooncakeLine(msgspec.Struct):
    """timestamp: milliseconds, quantised to 3 s in the real traces. hash_ids: one per 512 prompt tokens, chained."""

    timestamp: Annotated[float, Meta(ge=0, le=1e12)]
    input_length: Annotated[int, Meta(ge=0, le=10_000_000)]
    output_length: Annotated[int, Meta(ge=0, le=10_000_000)]
    hash_ids: list[Annotated[int, Meta(ge=0, le=2**63 - 1)]]


def _mooncake(path: Path, seed: int) -> tuple[list[Row], dict[str, object]]:
    decoder = msgspec.json.Decoder(_MooncakeLine)
    lines = []
    for number, text in enumerate(_lines(path), start=1):
        if text.isspace():
            continue
        try:
            lines.append(decoder.decode(text))
        except msgspec.DecodeError as error:
            raise ValueError(f"{path}: line {number}: {error}") from None
    arrivals, notes = _unquantised(np.array([line.timestamp for line in lines]), seed)
    rows = [
        Row(arrival, line.input_length, line.output_length, tuple(line.hash_ids))
        for arrival, line in zip(arrivals.tolist(), lines, strict=True)
    ]
    return sorted(rows, key=lambda row: row.arrival), notes


def _unquantised(stamps: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float64], dict[str, object]]:
    """Milliseconds as seconds after the first. Where all sit on 3 s ticks (give or take the 1 ms by which the source
    rounds), each gets a seeded place within its tick: 89 % of the gaps of the real trace are zero, and replayed as it
    stands every tick would be a burst that never happened."""
    ticks = np.round(stamps / MOONCAKE_TICK_MS) * MOONCAKE_TICK_MS
    if len(stamps) == 0 or stamps.max() == 0 or np.abs(stamps - ticks).max() > 1:
        return (stamps - stamps.min(initial=np.inf)) / 1000, {}
    jitter = np.random.default_rng(seed).uniform(0, MOONCAKE_TICK_MS, size=len(stamps))
    notes: dict[str, object] = {"jitter": f"uniform within the {MOONCAKE_TICK_MS / 1000:g} s ticks of the source"}
    return (ticks - ticks.min() + jitter) / 1000, notes
