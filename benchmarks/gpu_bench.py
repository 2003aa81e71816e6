"""python -m benchmarks.gpu_bench: kernels and engine on a GPU, beside ceilings of the same run (docs/gpu.md).

Each part runs in a process of its own within its budget of seconds: one that fails or takes too long costs the others
nothing, and what it measured until then is kept. Results are written after each part.
Exit status: 0 all parts ran to their end, whatever their figures; 1 some did not; 2 there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu_results import RESULTS, require_gpu, write

ROOT = Path(__file__).parent.parent


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if not arguments.rehearse:
        require_gpu("gpu-bench")
    stamp, rows, ended = time.strftime("%Y%m%d-%H%M%S"), [], True
    with tempfile.TemporaryDirectory() as scratch:
        # What a rehearsal measures is nothing to keep.
        out = Path(scratch, "results") if arguments.rehearse else RESULTS
        for part in arguments.part:
            found, whole = _run(part, Path(scratch, f"{part}.jsonl"), arguments.rehearse)
            rows += found
            ended = ended and whole
            table = write("gpu-bench", rows, out, stamp)
        print(table.read_text())
    return 0 if ended else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_bench")
    budgets = ", ".join(f"{name} {part.budget_s:g}" for name, part in PARTS.items())
    parser.add_argument(
        "--part", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART",
        help=f"what to measure, in this order, and seconds it may take: {budgets} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--rehearse", action="store_true", help="every part at toy sizes on the CPU; no results are kept"
    )
    return parser


def _run(name: str, rows: Path, rehearse: bool) -> tuple[list[dict[str, Any]], bool]:
    """The rows of a part, with one more that says why when it did not end by itself; whether it did."""
    budget, start = PARTS[name].budget_s, time.perf_counter()
    print(f"{name}: {budget:g} s at most", flush=True)
    command = [sys.executable, "-m", "benchmarks.gpu", name, str(rows), *(["--rehearse"] if rehearse else [])]
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if rehearse else {})
    problem = None
    # A session of its own: a server that a part started goes with it.
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            if (status := process.wait(budget)) != 0:
                problem = f"ended with status {status}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            problem = f"stopped after its {budget:g} s"
    print(f"{name}: {problem or 'done'}, {time.perf_counter() - start:.0f} s of {budget:g} s", flush=True)
    found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    if problem is not None:
        found.append({"part": name, "bench": f"not measured from here on: {problem}", "passed": False})
    return found, problem is None


if __name__ == "__main__":
    sys.exit(main())
