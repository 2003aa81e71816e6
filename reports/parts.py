"""What a page is made of: sections of paragraphs, figures and tables. The templates turn them into HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go

from reports.text import NONE

Mark = Literal["", "yes", "no", "text", "changed", "select"]
"""How a cell looks; select: its key is a trial's number, which it selects."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """note: smaller, about how to read what is above."""

    text: str
    note: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """id: of the element, unique on the page. label: what is seen, in words, for those who do not see it."""

    id: str
    plot: go.Figure
    label: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Panels:
    """Small figures side by side."""

    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """What is shown, and what its column is sorted by: a number, or the text where there is none; "" stays last."""

    text: str
    key: float | str
    mark: Mark = ""


@dataclass(frozen=True, slots=True)
class Table:
    """columns: headings with units. rows: a CSS class (baseline, recommended or none) and as many cells as columns.
    words: so many columns from the left hold words."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    words: int = 1


@dataclass(frozen=True, slots=True)
class Compared:
    """Where two selected trials are put side by side, by the page's script."""


@dataclass(frozen=True, slots=True)
class Section:
    """id: what links name it by."""

    id: str
    title: str
    parts: tuple[Paragraph | Figure | Panels | Table | Compared, ...]


def word(text: str, mark: Mark = "") -> Cell:
    """A cell sorted by its text."""
    return Cell(text, text, mark)


def value(text: str, key: float | None, mark: Mark = "") -> Cell:
    """A cell sorted by the number that its text is made from; a dash where there is none."""
    return Cell(NONE, "", mark) if key is None else Cell(text, key, mark)


def verdict(holds: bool, told: str = "") -> Cell:
    """yes or no, told apart by more than the colour; or in other words."""
    mark: Mark = "yes" if holds else "no"
    return Cell(told or mark, int(holds), mark)
