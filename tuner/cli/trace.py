"""`tune trace …` and `tune record`: recorded traffic, made and changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Recorded traffic: import, inspect, change.", no_args_is_help=True)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="The published trace.")],
    format: Annotated[Literal["azure", "mooncake"], typer.Option(help="Its format.")],
    out: Annotated[Path, typer.Option(help="Trace file to write.")],
    window: Annotated[str | None, typer.Option(help="Seconds of the source, START:END.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many requests.", min=1)] = None,
    length_scale: Annotated[float, typer.Option(help="Factor on prompt and output lengths.")] = 1.0,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    max_output_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    tenant: Annotated[str, typer.Option(help="Tenant of all requests.")] = "default",
    slo_class: Annotated[str, typer.Option(help="SLO class of all requests.")] = "default",
    vocab_size: Annotated[int, typer.Option(help="Prompt tokens are drawn below it.", min=2)] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of the prompt tokens.", min=0)] = 0,
) -> None:
    """Turn a published trace, which tells lengths only, into ours with seeded prompts."""
    from tuner.loadtest import parse_window
    from tuner.traffic.formats import import_trace
    from tuner.traffic.trace_file import save_trace

    start, end = parse_window(window) if window else (0.0, None)
    trace = import_trace(
        file, format, limit=limit, start=start, end=end, seed=seed, tenant=tenant, slo_class=slo_class,
        length_scale=length_scale, max_prompt_tokens=max_prompt_tokens, max_output_tokens=max_output_tokens,
        vocab_size=vocab_size,
    )  # fmt: skip
    save_trace(trace, out)
    typer.echo(f"wrote {len(trace.requests)} requests over {trace.span:.1f} s to {out}")


def record(
    upstream: Annotated[str, typer.Option(help="Server to record in front of, http://HOST:PORT.")],
    out: Annotated[Path, typer.Option(help="Trace file to write; it must not exist.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT to listen on; port 0: any.")] = "127.0.0.1:0",
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="Listen beyond this machine too.")] = False,
    redact: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Replaced in prompts, answers and names before writing; repeatable."),
    ] = None,
    anonymize_key_file: Annotated[
        Path | None, typer.Option(help="Write block hashes under the key in this file instead of text.")
    ] = None,
) -> None:
    """Record the traffic of a server, as a proxy before it, until Ctrl-C."""
    import asyncio

    from tuner.traffic.anonymize import Anonymizer, read_key
    from tuner.traffic.recorder import record as record_traffic
    from tuner.traffic.redaction import Redactor

    host, separator, port = listen.rpartition(":")
    if not separator or not host or not port.isdigit():
        raise ValueError(f"--listen {listen}: expected HOST:PORT")

    def ready(url: str) -> None:
        typer.echo(f"listening {url}")
        sys.stdout.flush()

    recording = record_traffic(
        upstream, host.strip("[]"), int(port), out, on_ready=ready, allow_remote=allow_remote,
        redactor=Redactor(redact or ()),
        anonymizer=None if anonymize_key_file is None else Anonymizer(read_key(anonymize_key_file)),
    )  # fmt: skip
    done = asyncio.run(recording)
    skipped = "".join(f", {count} {reason}" for reason, count in sorted(done.skipped.items()))
    typer.echo(f"wrote {done.written} requests to {out}{skipped and f' (left out{skipped})'}")
