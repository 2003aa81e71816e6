"""`tune trace import`: what others recorded becomes a trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tuner.cli.output_file import check_output

if TYPE_CHECKING:
    from tuner.traffic.importers.importer import Imported

FormatName = Literal[
    "azure", "mooncake", "bailian", "burstgpt", "servegen", "weka", "sharegpt", "vllm-custom", "vllm-timed-trace",
    "openai-batch", "litellm", "otel", "lengths", "csv", "jsonl",
]  # fmt: skip
SHOWN_BAD_LINES = 20


def import_(
    file: Annotated[Path, typer.Argument(help="The recorded traffic; for weka a folder of sessions too.")],
    format: Annotated[FormatName, typer.Option(help="Its format, see docs/trace-format.md.")],
    out: Annotated[Path, typer.Option(help="Trace file to write.")],
    window: Annotated[str | None, typer.Option(help="Seconds of the source, START:END.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many requests.", min=1)] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--map", help="FIELD=COLUMN such as arrival=ts or prompt_tokens=usage.input; repeatable."),
    ] = None,
    unit: Annotated[list[str] | None, typer.Option(help="FIELD=s|ms|us|ns|iso of a mapped time; repeatable.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Starts a second, where the source tells no arrivals: requests, or sessions.")
    ] = None,
    cv: Annotated[float, typer.Option(help="Coefficient of variation of their gaps; 1: Poisson, 0: even.")] = 1.0,
    think_time: Annotated[float, typer.Option(help="Seconds between turns where the source tells none.")] = 0.0,
    tick: Annotated[
        float | None, typer.Option(help="Seconds of the source's clock, jittered; default: found out; 0: leave.")
    ] = None,
    block_tokens: Annotated[int | None, typer.Option(help="Prompt tokens under one of the hash ids.", min=1)] = None,
    length_scale: Annotated[float, typer.Option(help="Factor on prompt and output lengths.")] = 1.0,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    max_output_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="For requests that tell neither max_tokens nor an answer's length.", min=1)
    ] = None,
    replace_text: Annotated[
        bool, typer.Option("--replace-text", help="Seeded tokens of the same length instead of prompt text.")
    ] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json, to count tokens where the source does not.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Tenant of requests that name none.")] = "default",
    slo_class: Annotated[str, typer.Option(help="SLO class of requests that name none.")] = "default",
    vocab_size: Annotated[int, typer.Option(help="Prompt tokens are drawn below it.", min=2)] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of all that is drawn.", min=0)] = 0,
    max_bad_lines: Annotated[int, typer.Option(help="Bad lines left out before giving up.", min=0)] = 0,
) -> None:
    """Turn recorded traffic of another format into a trace.

    Example: tune trace import spend_logs.csv --format litellm --out trace.jsonl

    Prompts that the source tells only lengths of are seeded tokens.
    """
    from tuner.loadtest import parse_window
    from tuner.traffic.importers.importer import import_trace
    from tuner.traffic.importers.options import ImportOptions
    from tuner.traffic.trace_file import save_trace

    check_output("--out", out, file, tokenizer)
    start, end = parse_window(window) if window else (0.0, None)
    options = ImportOptions(
        limit=limit, start=start, end=end, seed=seed, tenant=tenant, slo_class=slo_class, length_scale=length_scale,
        max_prompt_tokens=max_prompt_tokens, max_output_tokens=max_output_tokens, vocab_size=vocab_size, rate=rate,
        cv=cv, think_time=think_time, tick=tick, columns=_pairs("--map", column), units=_pairs("--unit", unit),
        block_tokens=block_tokens, replace_text=replace_text, tokenizer=tokenizer, max_tokens=max_tokens,
        max_bad_lines=max_bad_lines,
    )  # fmt: skip
    imported = import_trace(file, format, options)
    save_trace(imported.trace, out)
    _report(imported, out)


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    found = {}
    for text in given or []:
        key, separator, value = text.partition("=")
        if not separator or not key or not value:
            raise ValueError(f"{option} {text}: expected FIELD=VALUE")
        found[key] = value
    return found


def _report(imported: Imported, out: Path) -> None:
    trace = imported.trace
    sessions = len({request.session for request in trace.requests if request.session is not None})
    of = f" in {sessions} session{'s' if sessions > 1 else ''}" if sessions else ""
    typer.echo(f"wrote {len(trace.requests)} requests{of} over {trace.span:.1f} s to {out}")
    for reason, count in sorted(imported.left_out.items()):
        typer.echo(f"left out {count}: {reason}")
    for number, why in imported.bad_lines[:SHOWN_BAD_LINES]:
        typer.echo(f"left out {imported.word} {number}: {why}")
    if len(imported.bad_lines) > SHOWN_BAD_LINES:
        typer.echo(f"left out {len(imported.bad_lines) - SHOWN_BAD_LINES} more bad lines; see the trace's provenance")
