"""What `tune trace inspect` prints."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from tuner.terminal import output
from tuner.traffic.inspection import Group, Inspection
from tuner.traffic.statistics import LengthStatistics

SHOWN_GROUPS = 12


def print_inspection(found: Inspection) -> None:
    """Everything but the single requests; on standard output."""
    console = output()
    for line in _lines(found):
        console.print(Text(line), soft_wrap=True)
    console.print(_lengths(found))
    for what, groups in (("class", found.classes), ("tenant", found.tenants)):
        console.print(_groups(what, groups))
        if len(groups) > SHOWN_GROUPS:
            console.print(f"and {len(groups) - SHOWN_GROUPS} more; --json lists them all")
    for doubt in found.doubts:
        console.print(Text(f"doubt: {doubt.name}: {doubt.detail}; {doubt.advice}"), soft_wrap=True)


def _lines(found: Inspection) -> Iterable[str]:
    arrivals = found.arrivals
    rate = "" if arrivals.rate is None else f", {arrivals.rate:.3g}/s"
    yield f"{found.name}: {arrivals.requests} requests over {arrivals.span:.1f} s{rate}"
    if arrivals.gap_cv is not None:
        zero = f"{arrivals.zero_gaps:.1%} are 0"
        yield f"gaps: CV {arrivals.gap_cv:.2f} (Poisson 1), longest {arrivals.gap_max:.3g} s, {zero}"
    for one in arrivals.dispersion:
        yield (
            f"bins of {one.bin_seconds:g} s: index of dispersion {one.index:.2f} (Poisson 1), "
            f"peak to mean {one.peak_to_mean:.2f}"
        )
    if found.sharing is None:
        yield "prefix sharing: unknown"
    else:
        yield (
            f"prefix sharing: {found.sharing.token_share:.1%} of the prompt tokens, {found.sharing.block_share:.1%} of "
            "the blocks, were in an earlier prompt"
        )
    if (sessions := found.sessions) is not None:
        think = "" if sessions.think_p50 is None else f", think time p50 {sessions.think_p50:.3g} s"
        yield (
            f"sessions: {sessions.sessions} with {sessions.requests} requests, turns p50 {sessions.turns_p50:g} "
            f"max {sessions.turns_max}{think}"
        )


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 else "right", no_wrap=place == 0)
    return table


def _lengths(found: Inspection) -> Table:
    table = _table("tokens", "requests", "mean", "min", "p50", "p90", "p95", "p99", "max")
    for what, lengths in (("prompt", found.prompt), ("answer", found.output)):
        if lengths is None:
            table.add_row(what, "0")
        else:
            ranks = [f"{value:.0f}" for value in lengths.percentiles.values()]
            table.add_row(
                what, str(lengths.requests), f"{lengths.mean:.1f}", str(lengths.min), *ranks, str(lengths.max)
            )
    return table


def _groups(what: str, groups: tuple[Group, ...]) -> Table:
    table = _table(what, "requests", "share", "per s", "gap CV", "prompt p50", "p99", "answer p50", "p99", "tokens")
    for group in groups[:SHOWN_GROUPS]:
        rate, cv = group.arrivals.rate, group.arrivals.gap_cv
        table.add_row(
            Text(group.name),
            str(group.arrivals.requests),
            f"{group.share:.1%}",
            "-" if rate is None else f"{rate:.3g}",
            "-" if cv is None else f"{cv:.2f}",
            *_two(group.prompt),
            *_two(group.output),
            f"{group.prompt_share:.1%}",
        )
    return table


def _two(lengths: LengthStatistics | None) -> tuple[str, str]:
    if lengths is None:
        return "-", "-"
    return f"{lengths.percentiles[50]:.0f}", f"{lengths.percentiles[99]:.0f}"
