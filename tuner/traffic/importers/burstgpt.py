"""BurstGPT (Wang et al., KDD 2025; github.com/HPMLL/BurstGPT, README.md of release v1.1).

CSV, columns by name, for v1.2 inserts `Session ID` and `Elapsed time` after `Timestamp` (s): `Model`, `Request tokens`,
`Response tokens`, `Total tokens`, `Log Type`. A row without response tokens is a request that failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tuner.traffic.importers.columns import Columns, read_csv
from tuner.traffic.importers.row import LeftOut, Row
from tuner.traffic.importers.source import Source

COLUMNS = Columns(
    {
        "arrival": "Timestamp",
        "prompt_tokens": "Request tokens",
        "output_tokens": "Response tokens",
        "session": "Session ID",
        "duration": "Elapsed time",
    },
    {"arrival": "s", "duration": "s"},
    ("arrival", "prompt_tokens", "output_tokens"),
)


def read(source: Source) -> Iterator[Row]:
    return read_csv(source, COLUMNS, _answered)


def _answered(columns: Columns, number: int, record: Mapping[str, Any]) -> Row:
    row = columns.row(number, record)
    if row.output_tokens == 0:
        raise LeftOut("failed, no response tokens")
    return row
