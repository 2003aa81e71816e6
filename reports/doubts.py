"""What the checks of the measurements doubt, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.results import StudyResults


@dataclass(frozen=True, slots=True)
class Row:
    """One doubt with the trials that it is about. decisive: baseline or recommended among them."""

    doubt: str
    advice: str
    trials: tuple[int, ...]
    decisive: bool


def info(results: StudyResults, recommended: int | None) -> tuple[Row, ...]:
    """Doubts about baseline or recommendation first, then the most frequent."""
    found: dict[str, list[int]] = {}
    for trial in results.trials:
        for doubt in trial.doubts:
            found.setdefault(doubt, []).append(trial.number)
    matters = {results.baseline.number, recommended}
    rows = [_row(doubt, tuple(numbers), not matters.isdisjoint(numbers)) for doubt, numbers in found.items()]
    return tuple(sorted(rows, key=lambda row: (not row.decisive, -len(row.trials))))


def _row(doubt: str, trials: tuple[int, ...], decisive: bool) -> Row:
    name, _, advice = doubt.partition(": ")
    return Row(name, advice, trials, decisive)
