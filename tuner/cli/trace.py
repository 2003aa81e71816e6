"""`tune trace …` and `tune record`: recorded traffic, made and changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.errors import ErrorGroup
from tuner.cli.server_url import http_url
from tuner.cli.trace_import import import_

app = typer.Typer(cls=ErrorGroup, help="Recorded traffic: import, inspect, change.", no_args_is_help=True)


app.command("import")(import_)


def record(
    upstream: Annotated[str, typer.Option(help="Server to record in front of, http://HOST:PORT.", callback=http_url)],
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
    """Record the traffic of a server, as a proxy before it, until Ctrl-C.

    Example: tune record --upstream http://127.0.0.1:8000 --listen 127.0.0.1:9000 --out trace.jsonl
    """
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
