"""The command that compares the answers of two configurations or servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.server_url import http_url


def quality(
    a: Annotated[Path | None, typer.Argument(help="Engine configuration to compare with.")] = None,
    b: Annotated[Path | None, typer.Argument(help="Engine configuration that must be as good.")] = None,
    probes: Annotated[Path | None, typer.Option(help="Probes (JSONL), as in a study.")] = None,
    url_a: Annotated[
        str | None, typer.Option(help="Running server instead of A, http://HOST:PORT.", callback=http_url)
    ] = None,
    url_b: Annotated[str | None, typer.Option(help="Running server instead of B.", callback=http_url)] = None,
    model_a: Annotated[str | None, typer.Option(help="Model name at --url-a; default the first it lists.")] = None,
    model_b: Annotated[str | None, typer.Option(help="Model name at --url-b.")] = None,
    max_nll_increase: Annotated[float, typer.Option(help="Nats per token that B may lose.", min=0)] = 0.02,
    min_recall: Annotated[float, typer.Option(help="Share of A's right answers to keep.", min=0, max=1)] = 0.9,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare the answers of two configurations or servers, slice by slice, with intervals and sample sizes.

    Example: tune quality a.yaml b.yaml --probes examples/demo/probes.jsonl
    """
    from tuner.quality_check import compare_configurations, compare_servers, print_comparison
    from tuner.scoring.probes import load_probes
    from tuner.scoring.quality import Floor

    if probes is None:
        raise ValueError("--probes: expected a file of probes; examples/demo/probes.jsonl is one")
    floor, asked = Floor(max_nll_increase, min_recall), load_probes(probes)
    if a is not None and b is not None and url_a is None and url_b is None:
        found = compare_configurations(a, b, asked, floor)
    elif a is None and url_a is not None and url_b is not None:
        found = compare_servers(url_a, url_b, (model_a, model_b), asked, floor)
    else:
        raise ValueError("expected two files, A.yaml and B.yaml, or --url-a and --url-b")
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        print_comparison(found)
