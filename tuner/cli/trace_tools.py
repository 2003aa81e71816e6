"""`tune trace inspect, split, scale, synth, anonymize`: traces looked at and changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tuner.cli.output_file import check_output

if TYPE_CHECKING:
    from tuner.traffic.trace_lines import TraceLines

TraceArgument = Annotated[Path, typer.Argument(help="The trace file.")]
OutOption = Annotated[Path, typer.Option(help="Trace file to write.")]
UnitName = Literal["tenant", "session"]
SeedOption = Annotated[int, typer.Option(help="Seed of all that is drawn.", min=0)]


def inspect(
    file: TraceArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures, which needs no network.")] = None,
) -> None:
    """Say what is in a trace: rate, burstiness, lengths, shared prefixes, tenants, and what is doubtful about it.

    Example: tune trace inspect trace.jsonl --html trace.html
    """
    from tuner.traffic.inspection import inspect_trace

    if html is not None:
        check_output("--html", html, file, makes_directory=True)
    found = inspect_trace(file)
    if html is not None:
        from reports.trace_page import write_trace_page

        write_trace_page(found, html)
    if as_json:
        typer.echo(json.dumps(found.summary(), indent=2))
        return
    from tuner.cli.trace_tables import print_inspection

    print_inspection(found)
    if html is not None:
        typer.echo(f"wrote {html}")


def split(
    file: TraceArgument,
    by: Annotated[
        Literal["time", "tenant", "session"], typer.Option(help="Tune on the first part, or on some of the users.")
    ] = "time",
    share: Annotated[
        float | None, typer.Option(help="Of the trace's seconds, or of its requests, to tune on; default 0.7.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="With --by time: the second at which to cut.")] = None,
    tune: Annotated[Path | None, typer.Option(help="File to tune on; default FILE-tune.jsonl.")] = None,
    held_out: Annotated[Path | None, typer.Option(help="File held out; default FILE-held-out.jsonl.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Divide a trace into one to tune on and one held out: later in time, or other users. Sessions stay whole.

    Example: tune trace split trace.jsonl --by tenant --share 0.7
    """
    from tuner.traffic.split import split_by_time, split_by_unit
    from tuner.traffic.trace_lines import read_lines

    if seconds is not None and (by != "time" or share is not None):
        raise ValueError("--seconds: expected with --by time, and without --share")
    names = (
        tune or file.with_name(f"{file.stem}-tune.jsonl"),
        held_out or file.with_name(f"{file.stem}-held-out.jsonl"),
    )
    check_output("--tune", names[0], file)
    check_output("--held-out", names[1], file, names[0])
    trace = read_lines(file)
    fraction = 0.7 if share is None else share
    if not 0 < fraction < 1:
        raise ValueError(f"--share {fraction:g}: expected a number between 0 and 1")
    try:
        if by == "time":
            parts = split_by_time(trace, fraction * trace.span if seconds is None else seconds)
        else:
            parts = split_by_unit(trace, by, fraction, seed)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    for part, path in zip(parts, names, strict=True):
        _write(part, path)


def scale(
    file: TraceArgument,
    out: OutOption,
    time_scale: Annotated[float, typer.Option(help="How many times faster.")] = 1.0,
    prompt_scale: Annotated[
        float, typer.Option(help="Factor on the prompts' lengths; the text loses its sense.")
    ] = 1.0,
    output_scale: Annotated[float, typer.Option(help="Factor on the answers' lengths.")] = 1.0,
    keep: Annotated[float | None, typer.Option(help="Share of the requests to keep, by whole users.")] = None,
    by: Annotated[UnitName, typer.Option(help="With --keep: what is kept or left out whole.")] = "tenant",
    seed: SeedOption = 0,
) -> None:
    """Make a trace faster or slower, its prompts and answers longer or shorter, its users fewer.

    Example: tune trace scale trace.jsonl --time-scale 2 --out faster.jsonl
    """
    from tuner.traffic.scaling import length_scaled, thinned, time_scaled
    from tuner.traffic.trace_lines import read_lines

    if keep is not None and not 0 < keep < 1:
        raise ValueError(f"--keep: expected a number between 0 and 1, given {keep:g}")
    check_output("--out", out, file)
    trace = read_lines(file)
    if keep is not None:
        trace = thinned(trace, keep, by, seed)
    if time_scale != 1:
        trace = time_scaled(trace, time_scale)
    if (prompt_scale, output_scale) != (1, 1):
        trace = length_scaled(trace, prompt_scale, output_scale)
    _write(trace, out)


def anonymize(
    file: TraceArgument,
    out: OutOption,
    key_file: Annotated[
        Path | None, typer.Option(help="File with the secret key; default: the environment's SERVETUNE_TRACE_KEY.")
    ] = None,
    block_tokens: Annotated[int, typer.Option(help="Prompt tokens under one hash, at least 16.")] = 16,
) -> None:
    """Replace text by keyed hashes: arrivals, lengths, shared prefixes and classes stay, nothing that was said does.

    Example: tune trace anonymize trace.jsonl --key-file key --out anonymous.jsonl
    """
    from tuner.traffic.anonymize import anonymized, read_key
    from tuner.traffic.trace_lines import read_lines

    check_output("--out", out, file, key_file)
    key = read_key(key_file)
    _write(anonymized(read_lines(file), key, block_tokens), out)


def _write(trace: TraceLines, path: Path) -> None:
    from tuner.traffic.trace_lines import write_lines

    write_lines(path, trace.header, trace.lines)
    typer.echo(f"wrote {len(trace.lines)} requests over {trace.span:.1f} s to {path}")
