"""`tune trace inspect, split, scale, synth, anonymize`: traces looked at and changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

TraceArgument = Annotated[Path, typer.Argument(help="The trace file.")]


def inspect(
    file: TraceArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is in a trace: rate, burstiness, lengths, shared prefixes, tenants, and what is doubtful about it."""
    from tuner.traffic.inspection import inspect_trace

    found = inspect_trace(file)
    if as_json:
        typer.echo(json.dumps(found.summary(), indent=2))
        return
    from tuner.cli.trace_tables import print_inspection

    print_inspection(found)
