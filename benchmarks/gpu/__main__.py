"""python -m benchmarks.gpu PART ROWS: one part in this process, each row appended to the file ROWS when measured."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.rows import Row


def run(part: str, rows: Path, device: torch.device) -> None:
    measure: Callable[[Bench], Iterator[Row]] = resolve_name(PARTS[part].rows)
    for row in measure(Bench.on(device)):
        record = row.record(part)
        with rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        verdict = {None: "    ", True: "ok  ", False: "MISS"}[record["passed"]]
        wanted = f" ({row.target})" if row.target else ""
        print(f"{verdict} {row.bench}: {row.measured:.4g} {row.unit}{wanted}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("rows", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    run(arguments.part, arguments.rows, torch.device("cpu" if arguments.rehearse else "cuda"))
