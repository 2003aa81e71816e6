"""`tune quality`: is B as good as A? Two configurations of the bundled engine, or two servers that speak only HTTP."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from rich.box import SIMPLE
from rich.table import Table

from engine.config import load_config
from tuner.scoring.agreement import Agreement, RecallCell, agreement, probes_needed, recall_grid
from tuner.scoring.probes import Probe, ProbeRecord, against
from tuner.scoring.quality import Floor, QualityScore, SliceQuality, quality_score
from tuner.scoring.speculation import DomainSpeculation
from tuner.serving.config import ServingConfig
from tuner.serving.http_answers import HttpAnswers, ask_over_http
from tuner.serving.remote import first_model
from tuner.serving.testbed import EngineSettings, LiveTestbed
from tuner.terminal import output
from tuner.traffic.exchange import base_url

TABLE_COLUMNS = 110


@dataclass(frozen=True, slots=True)
class Comparison:
    """B against A. forced_path: how forced tokens were read: "cache" (through the decode path, as served),
    "prefill" (prompt_logprobs: keys are read as prefill computes them, so a fault of the stored cache may not show) or
    "none". probes_needed: see agreement.probes_needed, the worst slice's. speculation: of B, if it guesses."""

    forced_path: str
    score: QualityScore | None
    agreement: tuple[Agreement, ...]
    recall: tuple[RecallCell, ...]
    probes_needed: int | None
    speculation: tuple[DomainSpeculation, ...] = ()

    @property
    def verdict(self) -> str:
        """holds: every floor is proven; lost: some slice missed one for certain; undecided: more probes are needed, or
        servers that tell the log-probabilities of the forced ones."""
        if self.score is None:
            return "undecided"
        if self.score.hopeless or not all(domain.lossless for domain in self.speculation):
            return "lost"
        proven = all(part.violation <= 0 for part in self.score.slices)
        return "holds" if proven and not self.forced_unread else "undecided"

    @property
    def forced_unread(self) -> bool:
        """There are forced probes, and no floor of theirs was measured: only their greedy answers were compared."""
        return self.forced_path == "none" and bool(self.agreement)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        domains = [
            {**asdict(domain), "acceptance": domain.acceptance, "break_even": domain.break_even}
            for domain in self.speculation
        ]
        return {"verdict": self.verdict, **asdict(self), "speculation": domains}


def compare_configurations(a: Path, b: Path, probes: Sequence[Probe], floor: Floor) -> Comparison:
    """Start the bundled engine with each file in turn. Raises ValueError for a bad file, ServingError."""
    first, second = (ServingConfig("bundled", load_config(path).model_dump()) for path in (a, b))
    if first.values["model"] != second.values["model"]:
        raise ValueError(f"{b}: model: expected that of {a}; answers of two models have no common tokens")
    with (
        tempfile.TemporaryDirectory(prefix="tune-quality-") as directory,
        LiveTestbed(EngineSettings(Path(directory)), {}) as testbed,
    ):
        reference = testbed.answer(first, probes)
        records = testbed.answer(second, against(probes, reference))
        guesses = bool(second.values["num_speculative_tokens"])
        speculation = testbed.speculation(second, probes) if guesses else ()
    return replace(_compared("cache", reference, records, (), floor), speculation=speculation)


def compare_servers(
    url_a: str, url_b: str, models: tuple[str | None, str | None], probes: Sequence[Probe], floor: Floor
) -> Comparison:
    """Ask two running servers. models: their names there, default the first that each lists. Raises ValueError."""

    async def both() -> list[HttpAnswers]:
        return [await _asked(option, url, model, probes) for option, url, model in zip(
            ("--url-a", "--url-b"), (url_a, url_b), models, strict=True
        )]  # fmt: skip

    a, b = asyncio.run(both())
    known = {record.probe_id for record in a.records} & {record.probe_id for record in b.records}
    first, second = ([r for r in side.records if r.probe_id in known] for side in (a, b))
    forced = any(record.kind == "forced" for record in first)
    path = "prefill" if forced else "none"
    return _compared(path, first, second, agreement(probes, a.texts, b.texts), floor)


async def _asked(option: str, url: str, model: str | None, probes: Sequence[Probe]) -> HttpAnswers:
    try:
        return await ask_over_http(base_url(url), model or await first_model(option, url), probes)
    except (aiohttp.ClientError, OSError, KeyError, IndexError) as error:
        raise ValueError(f"{option} {url}: no answer ({type(error).__name__}); is the server running?") from None


def _compared(
    path: str, a: Sequence[ProbeRecord], b: Sequence[ProbeRecord], agreed: tuple[Agreement, ...], floor: Floor
) -> Comparison:
    slices = sorted({record.slice for record in a})
    score = quality_score(a, b, dict.fromkeys(slices, floor)) if a else None
    needed = [probes_needed([r for r in a if r.slice == name], b, floor.max_nll_increase) for name in slices]
    return Comparison(path, score, agreed, recall_grid(a, b), max((n for n in needed if n is not None), default=None))


def print_comparison(found: Comparison) -> None:
    """Tables on standard output; bounds (<, >) are one-sided 95 %, each document counting once."""
    console = output(soft_wrap=True)
    console.width = max(console.width, TABLE_COLUMNS)  # a wrapped line can be read, a number cut in half cannot
    parts = found.score.slices if found.score is not None else ()
    if forced := [part for part in parts if part.kind == "forced"]:
        console.print(_forced(forced))
    if recall := [part for part in parts if part.kind == "recall"]:
        console.print(_recall(recall))
    if found.agreement:
        console.print(_agreements(found.agreement))
    if found.recall:
        console.print(_grid(found.recall))
    if found.speculation:
        console.print(_speculation(found.speculation))
    if found.score is not None:
        score = found.score
        what = "recall" if found.forced_unread else "quality"
        console.print(f"{what} of B relative to A: {score.value:.4f} ({score.low:.4f} to {score.high:.4f})")
    if found.forced_path == "prefill":
        console.print("forced tokens were read by prefill (prompt_logprobs): faults of the stored cache may not show")
    if found.forced_unread:
        console.print("forced probes prove no floor: A or B offers no prompt_logprobs, so only answers were compared")
    console.print(f"verdict: {found.verdict}")
    if found.probes_needed is not None:
        console.print(f"forced probes a slice needed to acquit in 80 of 100 tests: {found.probes_needed}")


def _table(*columns: str) -> Table:
    return Table(*columns, box=SIMPLE, padding=(0, 1, 0, 0))


def _forced(parts: Sequence[SliceQuality]) -> Table:
    table = _table("slice", "probes", "tokens", "NLL B-A", ">", "<", "KL", "flips", "<", "right A", "B", "floors")
    for part in parts:
        counts = (str(part.probes), str(part.positions))
        nll = (f"{value:+.4f}" for value in (part.nll_increase, part.nll_increase_lower, part.nll_increase_upper))
        shares = (part.flips, part.flips_upper, part.reference_accuracy, part.accuracy)
        divergence = "" if part.kl is None else f"{part.kl:.1e}"
        table.add_row(part.name, *counts, *nll, divergence, *(f"{share:.3f}" for share in shares), _held(part))
    return table


def _recall(parts: Sequence[SliceQuality]) -> Table:
    table = _table("slice", "probes", "right A", "right B", "kept", ">", "floors")
    for part in parts:
        shares = (part.reference_recall, part.recall, part.retention, part.retention_lower)
        table.add_row(part.name, str(part.probes), *(f"{share:.3f}" for share in shares), _held(part))
    return table


def _speculation(parts: Sequence[DomainSpeculation]) -> Table:
    table = _table("slice", "greedy answers", "equal", "ties", "accepted", "break-even")
    for part in parts:
        shares = (part.acceptance, part.break_even)
        shown = ("none" if share is None else f"{share:.2f}" for share in shares)
        table.add_row(part.slice, str(part.answers), str(part.equal), str(part.tied), *shown)
    return table


def _held(part: SliceQuality) -> str:
    return "hold" if part.violation <= 0 else "lost" if part.hopeless else "unproven"


def _agreements(parts: Sequence[Agreement]) -> Table:
    table = _table("slice", "probes", "equal greedy answers", "shared beginning")
    for part in parts:
        share = f"{part.equal / part.probes:.3f} ({part.low:.3f} to {part.high:.3f})"
        table.add_row(part.slice, str(part.probes), share, f"{part.shared:.3f}")
    return table


def _grid(cells: Sequence[RecallCell]) -> Table:
    table = _table("depth from", "tokens from", "probes", "right A", "right B")
    for cell in cells:
        table.add_row(f"{cell.depth:.2f}", str(cell.length), str(cell.probes), str(cell.right_a), str(cell.right_b))
    return table
