"""One measured figure beside its target and the ceiling of the same run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Target:
    """What a figure should be: at least or at most `value`, in the figure's own unit."""

    side: Literal[">=", "<="]
    value: float

    def __str__(self) -> str:
        return f"{self.side} {self.value:g}"

    def met(self, measured: float) -> bool:
        return measured >= self.value if self.side == ">=" else measured <= self.value


def at_least(value: float) -> Target:
    return Target(">=", value)


def at_most(value: float) -> Target:
    return Target("<=", value)


@dataclass(frozen=True)
class Row:
    """bench: what was done. unit: of `measured` and of the target. ceiling: what no figure of this run can pass, in the
    words and unit of the string (empty: none is known). details: what else was seen, names with units."""

    bench: str
    measured: float
    unit: str
    target: Target | None = None
    ceiling: str = ""
    details: dict[str, float] = field(default_factory=dict)

    def record(self, part: str) -> dict[str, Any]:
        """As it is stored. passed is None where there is no target."""
        target = self.target
        return {
            "part": part, "bench": self.bench, "measured": self.measured, "unit": self.unit,
            "target": None if target is None else str(target),
            "passed": None if target is None else target.met(self.measured),
            "ceiling": self.ceiling or None, "details": self.details,
        }  # fmt: skip
