"""What the GPU commands share: they need a GPU, and leave a JSON file and a table with the environment."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tuner.environment import environment

RESULTS = Path(__file__).with_name("results")


def require_gpu(command: str) -> torch.device:
    """The GPU. Ends the process with status 2 and one line where there is none."""
    if not torch.cuda.is_available():
        print(f"{command}: torch sees no NVIDIA GPU here; nothing was run", file=sys.stderr)
        raise SystemExit(2)
    return torch.device("cuda")


def write(command: str, rows: list[dict[str, Any]], directory: Path = RESULTS, stamp: str = "") -> Path:
    """Rows as `directory`/COMMAND-STAMP.json and a table beside it, over those of an earlier call with the same stamp.

    stamp: by default the time. Both are copied to the directory $OUT where that is set. Returns the table's path.
    """
    stem = f"{command}-{stamp or time.strftime('%Y%m%d-%H%M%S')}"
    machine = environment()
    content = json.dumps({"command": command, "environment": machine, "rows": rows}, indent=1) + "\n"
    table = _table(command, rows, machine)
    for folder in (Path(out) for out in (os.environ.get("OUT"), directory) if out):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.json").write_text(content, encoding="utf-8")
        (folder / f"{stem}.md").write_text(table, encoding="utf-8")
    return directory / f"{stem}.md"


def _table(command: str, rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"# {command}", "", f"{', '.join(machine['gpus']) or 'no GPU'}; {json.dumps(machine['packages'])}; "]
    lines[-1] += f"commit {machine.get('commit', 'unknown')}{' (dirty)' if machine.get('dirty') else ''}"
    lines += ["", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(number)}" for name, number in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "\\|")
