"""Rows of CSV files and JSON lines by the names of their columns, ours to say (`--map`, `--unit`) or a format's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tuner.traffic.importers import values
from tuner.traffic.importers.options import TIMES, ImportOptions
from tuner.traffic.importers.row import BadLine, Row, Text
from tuner.traffic.importers.source import Source

MOST_HASH = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Columns:
    """names: field -> column, or dotted keys into nested JSON. units: time field -> unit. required: fields without
    which a line is bad; a CSV file must have their columns."""

    names: Mapping[str, str]
    units: Mapping[str, str] = field(default_factory=dict)
    required: Collection[str] = ()

    def with_options(self, options: ImportOptions) -> Columns:
        """The same with what the user maps. Raises ValueError where a time has no declared unit."""
        names, units = {**self.names, **options.columns}, {**self.units, **options.units}
        for time in TIMES:
            if time in names and time not in units:
                raise ValueError(f"--unit {time}: expected s, ms, us, ns or iso, for units are declared, never guessed")
        stray = [time for time in options.units if time not in names]
        if stray:
            raise ValueError(f"--unit {stray[0]}: no column is mapped to it; expected --map {stray[0]}=COLUMN too")
        mapped = tuple(name for name in ("arrival", "prompt_tokens") if name in options.columns)
        return Columns(names, units, tuple(dict.fromkeys((*self.required, *mapped))))

    def row(self, number: int, record: Any) -> Row:
        """Raises BadLine."""
        if not isinstance(record, Mapping):
            raise BadLine("expected one JSON object")
        found = {name: _looked_up(record, key) for name, key in self.names.items()}
        for name in self.required:
            if found.get(name) is None:
                raise BadLine(f"{self.names[name]}: expected, but missing")
        arrival, end, think_time = self._times(found)
        row = Row(
            number=number,
            arrival=arrival,
            end=end,
            think_time=think_time,
            prompt=self._prompt(found),
            hash_ids=hash_ids(found.get("hash_ids"), self.names.get("hash_ids", "")),
            prompt_tokens=self._tokens(found, "prompt_tokens"),
            output_tokens=self._tokens(found, "output_tokens"),
            max_tokens=self._tokens(found, "max_tokens"),
            id=self._name(found, "id"),
            tenant=self._name(found, "tenant"),
            slo_class=self._name(found, "slo_class"),
            session=self._name(found, "session"),
        )
        if row.prompt is None and row.prompt_tokens is None:
            raise BadLine("expected a prompt or its length in tokens")
        return row

    def _times(self, found: Mapping[str, Any]) -> tuple[int | None, int | None, float | None]:
        """arrival, end and think time."""
        arrival, duration = self._time(found, "arrival"), self._time(found, "duration")
        end, think_time = self._time(found, "end"), self._time(found, "think_time")
        if arrival is not None and duration is not None:
            end = arrival + duration
        if (end is not None and arrival is not None and end < arrival) or (think_time or 0) < 0:
            raise BadLine("expected an end after the arrival, and think times from 0 on")
        return arrival, end, None if think_time is None else think_time / 1e9

    def _time(self, found: Mapping[str, Any], key: str) -> int | None:
        if found.get(key) is None:
            return None
        return values.nanoseconds(found[key], self.units[key], self.names[key])

    def _tokens(self, found: Mapping[str, Any], key: str) -> int | None:
        return values.optional_tokens(found.get(key), self.names.get(key, ""))

    def _name(self, found: Mapping[str, Any], key: str) -> str | None:
        return values.name(found.get(key), self.names.get(key, ""))

    def _prompt(self, found: Mapping[str, Any]) -> Text | None:
        prompt, key = found.get("prompt"), self.names.get("prompt", "")
        if prompt is None:
            return None
        return values.messages(prompt, key) if isinstance(prompt, list) else values.text(prompt, key)


def hash_ids(value: object, key: str) -> tuple[int, ...]:
    """Prefix hashes, of the leading blocks in order."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i <= MOST_HASH for i in value):
        raise BadLine(f"{key}: expected a list of whole numbers from 0 to {MOST_HASH}")
    return tuple(value)


def read_csv(
    source: Source, columns: Columns, parse: Callable[[Columns, int, Mapping[str, Any]], Row] = Columns.row
) -> Iterator[Row]:
    """Rows of a CSV file with a header. parse: what the format adds to Columns.row."""
    mine = columns.with_options(source.options)
    required = [name for key, name in mine.names.items() if key in mine.required or key in source.options.columns]
    return source.rows(source.csv_records(required), lambda number, record: parse(mine, number, record))


def read_json(
    source: Source, columns: Columns, parse: Callable[[Columns, int, Mapping[str, Any]], Row] = Columns.row
) -> Iterator[Row]:
    """Rows of JSON lines, or of one JSON array."""
    mine = columns.with_options(source.options)
    return source.rows(source.json_records(), lambda number, record: parse(mine, number, record))


def generic_csv(source: Source) -> Iterator[Row]:
    """Any CSV file with a header; `--map` names its columns."""
    return read_csv(source, _mapped(source))


def generic_json(source: Source) -> Iterator[Row]:
    """Any JSON lines or array of objects; `--map` names their keys."""
    return read_json(source, _mapped(source))


def _mapped(source: Source) -> Columns:
    if not {"prompt", "prompt_tokens"} & set(source.options.columns):
        raise ValueError("--map: expected prompt_tokens=COLUMN or prompt=COLUMN, and arrival=COLUMN or --rate")
    return Columns({})


def _looked_up(record: Mapping[str, Any], key: str) -> Any:
    """record[key], or for "a.b" record["a"]["b"]; None where there is none or it is empty."""
    found: Any = record.get(key)
    if found is None and "." in key:
        found = record
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    return None if found == "" else found
