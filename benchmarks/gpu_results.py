"""What the GPU commands share: they need a GPU, and leave a JSON file and a table with the environment."""

from __future__ import annotations

import json
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


def write(command: str, rows: list[dict[str, Any]], directory: Path = RESULTS) -> Path:
    """Rows with the same keys, as `directory`/COMMAND-DATE.json and .md. Returns the table's path."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
    machine = environment()
    content = {"command": command, "environment": machine, "rows": rows}
    (directory / f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"# {command}", "", f"{', '.join(machine['gpus']) or 'no GPU'}; {json.dumps(machine['packages'])}; "]
    lines[-1] += f"commit {machine.get('commit', 'unknown')}{' (dirty)' if machine.get('dirty') else ''}"
    lines += ["", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows]
    table = directory / f"{stem}.md"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
