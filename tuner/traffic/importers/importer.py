"""The door: a file that others recorded becomes a Trace."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tuner.traffic.importers import (
    arrivals,
    azure,
    burstgpt,
    columns,
    lengths,
    litellm,
    mooncake,
    openai_batch,
    otel,
    servegen,
    sharegpt,
    values,
    vllm_custom,
    weka,
)
from tuner.traffic.importers.options import ImportOptions
from tuner.traffic.importers.row import Row
from tuner.traffic.importers.source import Source
from tuner.traffic.importers.text import BLOCK_TOKENS, TextMeasure
from tuner.traffic.synthesis import DEFAULT_BLOCK_TOKENS, MADE_OF_LENGTHS, PromptSynthesizer
from tuner.traffic.trace import Endpoint, Prompt, Request, Trace, opened_sessions

MOST_SECONDS = 1e9
SLACK_SECONDS = 120
"""Rows this far past the end of the window are let go while reading; jitter moves none as far."""
REPORTED_BAD_LINES = 100


@dataclass(frozen=True, slots=True)
class Format:
    """read: rows of a source, in its order. cite: where it is from. clock: what its times count from: "first", the
    first of them; "zero", the start of the recording; "session", each session's own start. mapped: whether --map and
    --unit mean anything to it."""

    read: Callable[[Source], Iterator[Row]]
    cite: str
    clock: Literal["first", "zero", "session"] = "first"
    mapped: bool = True


FORMATS: Mapping[str, Format] = {
    "azure": Format(azure.read, "Azure LLM inference trace (Patel et al., Splitwise, ISCA 2024), CC-BY 4.0"),
    "mooncake": Format(mooncake.read_mooncake, "Mooncake trace (Qin et al., FAST 2025), Apache-2.0"),
    "bailian": Format(mooncake.read_bailian, "Qwen-Bailian anonymised usage traces, Apache-2.0"),
    "burstgpt": Format(burstgpt.read, "BurstGPT (Wang et al., KDD 2025), CC-BY 4.0"),
    "servegen": Format(
        servegen.read, "ServeGen client windows (arXiv 2505.09999), Apache-2.0", clock="zero", mapped=False
    ),
    "weka": Format(weka.read, "WEKA agent sessions (kv-cache-tester), Apache-2.0", clock="session", mapped=False),
    "sharegpt": Format(sharegpt.read, "ShareGPT conversations", mapped=False),
    "vllm-custom": Format(vllm_custom.read, "vLLM bench serve, custom dataset"),
    "vllm-timed-trace": Format(mooncake.read_timed_trace, "vLLM bench serve, timed trace"),
    "openai-batch": Format(openai_batch.read, "OpenAI batch input", mapped=False),
    "litellm": Format(litellm.read, "LiteLLM spend logs"),
    "otel": Format(otel.read, "OpenTelemetry GenAI spans"),
    "lengths": Format(lengths.read, "Lengths of prompts and answers"),
    "csv": Format(columns.generic_csv, "CSV, columns as mapped"),
    "jsonl": Format(columns.generic_json, "JSON lines, keys as mapped"),
}


@dataclass(frozen=True, slots=True)
class Imported:
    """bad_lines: (number, why) of lines left out because they cannot be read; word: what the numbers count ("line",
    "item", "span", "file"). left_out: reason -> count of those that are well but no request to replay."""

    trace: Trace
    bad_lines: tuple[tuple[int, str], ...]
    left_out: Mapping[str, int]
    word: str


def import_trace(path: Path, format: str, options: ImportOptions | None = None) -> Imported:
    """Read what others recorded. format: of FORMATS.

    Prompts that the source tells lengths of are token ids below vocab_size drawn from the seed; equal leading prefix
    hashes give equal leading tokens. Raises ValueError naming file and line, never a prompt.
    """
    if format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"--format: expected one of {', '.join(FORMATS)}, given {format!r}{hint}")
    options = options or ImportOptions()
    source = Source(path, options)
    chosen = FORMATS[format]
    if not chosen.mapped and (options.columns or options.units):
        raise ValueError(f"--map, --unit: {format} has one layout, whose names are known; leave them out")
    rows = list(_before_the_end(chosen.read(source), options, chosen))
    arrived = _windowed(_timed(_unrepeated(rows, source), source, chosen), options)
    if not arrived:
        until = "its end" if options.end is None else f"{options.end:g}"
        raise ValueError(f"{path}: holds no request from second {options.start:g} to {until}")
    seconds = options.end - options.start if options.end is not None and options.limit is None else None
    requests = opened_sessions(_requests(arrived, format, source))
    trace = Trace(requests, _provenance(source, format), seconds)
    return Imported(trace, tuple(source.bad), dict(source.left_out), source.word)


def _provenance(source: Source, format: str) -> dict[str, object]:
    found: dict[str, object] = {
        "source": FORMATS[format].cite,
        "file": source.path.name,
        "sha256": source.digest(),
        "import": {"format": format, **source.options.provenance()},
        **source.notes,
    }
    if source.left_out:
        found["left_out"] = dict(source.left_out)
    if source.bad:
        listed = [{source.word: number, "why": why} for number, why in source.bad[:REPORTED_BAD_LINES]]
        found |= {"bad_lines": len(source.bad), "bad_lines_listed": listed}
    return found


def _before_the_end(rows: Iterable[Row], options: ImportOptions, chosen: Format) -> Iterator[Row]:
    """Without those certain to be past the window's end, so that a week's file need not fit into memory: the first
    arrival can only turn out earlier than the earliest so far."""
    if options.end is None or chosen.clock == "session":
        yield from rows
        return
    span = round((options.end + SLACK_SECONDS + (options.tick or 0)) * 1e9)
    first = 0 if chosen.clock == "zero" else values.MOST_NANOSECONDS
    for row in rows:
        if row.arrival is not None:
            first = min(first, row.arrival)
            if row.arrival - first > span:
                continue
        yield row


def _unrepeated(rows: list[Row], source: Source) -> list[Row]:
    """Without rows whose id came before: exports overlap."""
    seen: set[str] = set()
    found = []
    for row in rows:
        if row.id is not None and row.id in seen:
            source.left_out["same id as a row before"] += 1
            continue
        if row.id is not None:
            seen.add(row.id)
        found.append(row)
    return found


def _timed(rows: list[Row], source: Source, chosen: Format) -> arrivals.Arrived:
    """Raises ValueError where some rows tell an arrival and others none."""
    if not rows:
        return []
    untimed = next((row for row in rows if row.arrival is None), None)
    if chosen.clock == "session" or all(row.arrival is None for row in rows):
        timed = arrivals.drawn(rows, source.options, source.notes)
    elif untimed is not None:
        raise ValueError(f"{source.path}: {source.word} {untimed.number}: expected an arrival, as other rows have")
    else:
        timed = arrivals.recorded(rows, source.options, source.notes, origin=0 if chosen.clock == "zero" else None)
    if timed[-1][0] > MOST_SECONDS:
        raise ValueError(f"{source.path}: spans {timed[-1][0]:.3g} s; is the unit of the arrivals right?")
    return _without_lone_sessions(arrivals.in_turns(timed, source.notes))


def _without_lone_sessions(arrived: arrivals.Arrived) -> arrivals.Arrived:
    """A session of one turn orders nothing."""
    turns: dict[str | None, int] = {}
    for _, row in arrived:
        turns[row.session] = turns.get(row.session, 0) + 1
    return [
        (at, replace(row, session=None, think_time=None) if turns[row.session] == 1 else row) for at, row in arrived
    ]


def _windowed(arrived: arrivals.Arrived, options: ImportOptions) -> arrivals.Arrived:
    start, end = options.start, options.end
    inside = [(at - start, row) for at, row in arrived if start <= at and (end is None or at < end)]
    return inside[: options.limit]


def _requests(arrived: arrivals.Arrived, format: str, source: Source) -> Iterator[Request]:
    maker = _RequestMaker(source, any(row.hash_ids for _, row in arrived))
    for index, (arrival, row) in enumerate(arrived):
        yield maker.request(f"{format}-{index:06d}", index, arrival, row)
    if maker.unshared == len(arrived):
        source.notes["prompts"] = MADE_OF_LENGTHS


class _RequestMaker:
    """Lengths scaled and capped, prompts kept or made up."""

    def __init__(self, source: Source, hashed: bool) -> None:
        options = source.options
        if hashed and source.block_tokens is None:
            raise ValueError("--block-tokens: expected the prompt tokens under one of hash_ids (Mooncake 512, Qwen 16)")
        block_tokens = source.block_tokens if hashed else BLOCK_TOKENS if options.replace_text else DEFAULT_BLOCK_TOKENS
        self._source, self._options = source, options
        self.unshared = 0
        """Prompts made without a hash."""
        self._measure = TextMeasure(options.tokenizer) if options.tokenizer is not None else None
        self._synthesizer = PromptSynthesizer(
            options.seed, options.vocab_size, (block_tokens or DEFAULT_BLOCK_TOKENS) * options.length_scale
        )

    def request(self, name: str, index: int, arrival: float, row: Row) -> Request:
        options, where = self._options, f"{self._source.path}: {self._source.word} {row.number}"
        prompt, endpoint, prompt_tokens = self._prompt(row, index, where)
        output_tokens = self._output_tokens(row)
        known = (tokens for tokens in (row.max_tokens, output_tokens, options.max_tokens) if tokens is not None)
        allowed = next(known, None)
        if allowed is None:
            raise ValueError(
                f"{where}: tells neither max_tokens nor its answer's length; give --max-tokens or --tokenizer"
            )
        if output_tokens is not None:
            output_tokens = self._clamped(output_tokens, options.max_output_tokens)
        return Request(
            id=row.id or name,
            arrival=arrival,
            tenant=row.tenant or options.tenant,
            slo_class=row.slo_class or options.slo_class,
            prompt=prompt,
            max_tokens=max(self._clamped(allowed, options.max_output_tokens), output_tokens or 1),
            endpoint=endpoint,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            temperature=row.temperature,
            top_p=row.top_p,
            top_k=row.top_k,
            seed=row.seed,
            reference=None if options.replace_text else row.reference,
            session=row.session,
            think_time=row.think_time,
        )

    def _prompt(self, row: Row, index: int, where: str) -> tuple[Prompt, Endpoint, int | None]:
        options, hashes, tokens = self._options, row.hash_ids, row.prompt_tokens
        if row.prompt is not None and not options.replace_text:
            if options.length_scale != 1 or options.max_prompt_tokens is not None:
                raise ValueError(
                    f"{where}: text has no other length; give --replace-text with --length-scale or a maximum"
                )
            return row.prompt, row.endpoint, tokens or (self._measure.count(row.prompt) if self._measure else None)
        if row.prompt is not None and self._measure is not None:
            ids = self._measure.ids(row.prompt)
            tokens, hashes = len(ids), self._measure.shared_blocks(ids)
        if tokens is None:
            raise ValueError(f"{where}: the source tells no length in tokens; give --tokenizer to replace its text")
        tokens = self._clamped(tokens, options.max_prompt_tokens)
        self.unshared += not hashes
        return self._synthesizer.prompt(tokens, index, hashes), "completions", tokens

    def _output_tokens(self, row: Row) -> int | None:
        if row.output_tokens is None and row.reference and self._measure is not None:
            return max(1, self._measure.count(row.reference))
        return row.output_tokens

    def _clamped(self, tokens: int, most: int | None) -> int:
        scaled = max(1, round(tokens * self._options.length_scale))
        return scaled if most is None else min(scaled, most)
