"""`tune trace synth`: traffic made to order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tuner.cli.output_file import check_output

if TYPE_CHECKING:
    from tuner.traffic.workload import Lengths

NEEDED = {
    "poisson": {"--rate", "--seconds"},
    "gamma": {"--rate", "--seconds", "--cv"},
    "on-off": {"--rate", "--seconds", "--on", "--off"},
    "servegen": {"--windows", "--window"},
}
"""Options of each arrival process."""


def synth(
    out: Annotated[Path, typer.Option(help="Trace file to write.")],
    arrivals: Annotated[Literal["poisson", "gamma", "on-off", "servegen"], typer.Option(help="How requests arrive.")],
    rate: Annotated[float | None, typer.Option(help="Mean requests/s.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of the trace.")] = None,
    cv: Annotated[
        float | None, typer.Option(help="gamma: coefficient of variation of the gaps; above 1: bursty.")
    ] = None,
    on: Annotated[float | None, typer.Option(help="on-off: mean seconds of a burst.")] = None,
    off: Annotated[float | None, typer.Option(help="on-off: mean seconds between bursts.")] = None,
    windows: Annotated[Path | None, typer.Option(help="servegen: chunk-N-trace.csv, its dataset beside it.")] = None,
    window: Annotated[str | None, typer.Option(help="servegen: seconds of it, START:END.")] = None,
    prompt_tokens: Annotated[str | None, typer.Option(help="fixed:N or lognormal:P50:P90[:MAX].")] = None,
    output_tokens: Annotated[str | None, typer.Option(help="The same of the answers.")] = None,
    lengths_from: Annotated[Path | None, typer.Option(help="Draw the lengths of this trace instead.")] = None,
    tenant: Annotated[list[str] | None, typer.Option(metavar="NAME=WEIGHT", help="Repeatable.")] = None,
    slo_class: Annotated[list[str] | None, typer.Option(metavar="NAME=WEIGHT", help="Repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all that is drawn.", min=0)] = 0,
) -> None:
    """Make a trace: arrivals of a process, lengths of a distribution, divided among tenants and classes.

    Example: tune trace synth --arrivals gamma --cv 2 --rate 5 --seconds 600 --prompt-tokens lognormal:200:900
    --output-tokens fixed:64 --out made.jsonl
    """
    from tuner.loadtest import parse_window
    from tuner.traffic.trace_lines import write_lines
    from tuner.traffic.workload import made_trace, parse_shares, servegen_window

    given = {"--rate": rate, "--seconds": seconds, "--cv": cv, "--on": on, "--off": off, "--windows": windows,
             "--window": window}  # fmt: skip
    _check(arrivals, given)
    check_output("--out", out, windows, lengths_from)
    own = None
    if windows is not None and window is not None:
        start, end = parse_window(window)
        times, own = servegen_window(windows, start, end, seed)
        span = end - start
    else:
        assert rate is not None and seconds is not None
        times, span = _drawn(arrivals, rate, seconds, cv, on, off, seed), seconds
    lengths = _lengths(len(times), prompt_tokens, output_tokens, lengths_from, own, seed)
    provenance = {
        "source": "tune trace synth", "arrivals": arrivals, "seed": seed,
        **{name.removeprefix("--"): _plain(value) for name, value in given.items() if value is not None},
        "lengths": lengths_from.name if lengths_from else [prompt_tokens, output_tokens] if prompt_tokens else arrivals,
    }  # fmt: skip
    tenants, classes = parse_shares("--tenant", tenant or ()), parse_shares("--slo-class", slo_class or ())
    made = made_trace(times, span, lengths, tenants, classes, seed, provenance)
    write_lines(out, made.header, made.lines)
    typer.echo(f"wrote {len(made.lines)} requests over {made.span:.1f} s to {out}")


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Path) else value


def _check(arrivals: str, given: dict[str, Any]) -> None:
    there = {name for name, value in given.items() if value is not None}
    for name in sorted(NEEDED[arrivals] - there):
        raise ValueError(f"{name}: expected with --arrivals {arrivals}")
    for name in sorted(there - NEEDED[arrivals]):
        takes = ", ".join(process for process, names in NEEDED.items() if name in names)
        raise ValueError(f"{name}: not of --arrivals {arrivals}; {takes} takes it")


def _drawn(
    arrivals: str, rate: float, seconds: float, cv: float | None, on: float | None, off: float | None, seed: int
) -> list[float]:
    from tuner.traffic.arrivals import gamma_renewal, on_off, poisson
    from tuner.traffic.workload import ARRIVALS, stream

    rng = stream(seed, ARRIVALS)
    if cv is not None:
        return gamma_renewal(rate, cv, seconds, rng).tolist()
    if on is not None and off is not None:
        return on_off(rate, on, off, seconds, rng).tolist()
    return poisson(rate, seconds, rng).tolist()


def _lengths(
    count: int, prompt: str | None, output: str | None, other: Path | None, own: Lengths | None, seed: int
) -> Lengths:
    from tuner.traffic.lengths import parse_lengths
    from tuner.traffic.workload import drawn_lengths, lengths_from

    told: Sequence[str | Path] = [one for one in (prompt, output) if one is not None]
    if (other is not None and told) or len(told) == 1 or (other is None and own is None and not told):
        raise ValueError("--prompt-tokens and --output-tokens, or --lengths-from: expected either")
    if other is not None:
        return lengths_from(other, count, seed)
    if prompt is not None and output is not None:
        return drawn_lengths(parse_lengths(prompt), parse_lengths(output), count, seed)
    assert own is not None
    return own
