"""Lengths only: CSV `num_prefill_tokens,num_decode_tokens`, as Vidur's and Etalon's processed traces have them.

github.com/microsoft/vidur, data/processed_traces; github.com/project-etalon/etalon. Some have `arrived_at` (s) too;
without it the arrivals are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator

from tuner.traffic.importers.columns import Columns, read_csv
from tuner.traffic.importers.row import Row
from tuner.traffic.importers.source import Source

COLUMNS = Columns(
    {"arrival": "arrived_at", "prompt_tokens": "num_prefill_tokens", "output_tokens": "num_decode_tokens"},
    {"arrival": "s"},
    ("prompt_tokens", "output_tokens"),
)


def read(source: Source) -> Iterator[Row]:
    return read_csv(source, COLUMNS)
