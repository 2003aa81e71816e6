"""Stand-ins behind the seams, shared by the tests of several rooms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def cases(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Table rows whose first cell says the case in words, as pytest parameters."""
    return [pytest.param(*row[1:], id=row[0]) for row in rows]
