"""What an import is asked for."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tuner.traffic.synthesis import DEFAULT_VOCAB_SIZE

UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1, "iso": 0}
"""Nanoseconds of a unit; iso: a timestamp as ISO 8601 writes it, which has no factor."""
TIMES = ("arrival", "end", "think_time", "duration")
FIELDS = (
    *TIMES, "id", "tenant", "slo_class", "session", "prompt", "prompt_tokens", "output_tokens", "max_tokens",
    "hash_ids",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How a source becomes a trace.

    start, end: seconds of the source, [start, end), rebased to 0; limit: then the first so many requests.
    length_scale: a length L becomes clamp(round(L * length_scale), 1, max_..._tokens). rate, cv: arrivals for a source
    that tells none: starts a second, and the coefficient of variation of their gaps (Gamma; 1 is Poisson, 0 even).
    think_time: seconds between turns where the source tells none. tick: seconds of the source's clock; None: found out;
    0: arrivals stay as they are. columns: field (FIELDS) -> column or dotted key; units: time field -> unit (UNITS).
    block_tokens: prompt tokens under one prefix hash, where the format does not fix it. replace_text: seeded tokens of
    the same length instead of prompt text. tokenizer: a tokenizer.json that counts tokens where the source does not.
    max_tokens: for requests that tell neither that nor the length of an answer. max_bad_lines: bad lines left out
    before the import gives up. tenant, slo_class: of rows that name none.
    """

    limit: int | None = None
    start: float = 0.0
    end: float | None = None
    seed: int = 0
    tenant: str = "default"
    slo_class: str = "default"
    length_scale: float = 1.0
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    vocab_size: int = DEFAULT_VOCAB_SIZE
    rate: float | None = None
    cv: float = 1.0
    think_time: float = 0.0
    tick: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    block_tokens: int | None = None
    replace_text: bool = False
    tokenizer: Path | None = None
    max_tokens: int | None = None
    max_bad_lines: int = 0

    def __post_init__(self) -> None:
        for name, value in (("length-scale", self.length_scale), ("rate", self.rate)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name} {value:g}: expected a number above 0")
        for name, number in (("cv", self.cv), ("think-time", self.think_time), ("tick", self.tick)):
            if number is not None and not 0 <= number < math.inf:
                raise ValueError(f"--{name} {number:g}: expected a number from 0 on")
        for key in self.columns:
            _check_name("map", key, FIELDS)
        for key, unit in self.units.items():
            _check_name("unit", key, TIMES)
            _check_name(f"unit {key}", unit, tuple(UNITS))

    def provenance(self) -> dict[str, object]:
        """The options that are not as usual, for the header of the trace."""
        usual, given = asdict(ImportOptions()), asdict(self)
        changed = {key: value for key, value in given.items() if value != usual[key] or key in ("seed", "length_scale")}
        return {**changed, **({"tokenizer": self.tokenizer.name} if self.tokenizer else {})}


def _check_name(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        near = difflib.get_close_matches(given, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"--{option}: expected one of {', '.join(known)}, given {given!r}{hint}")
