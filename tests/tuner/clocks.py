"""Limits that pass by what an engine does and not by how slow the machine is."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fakes import PATIENCE
from tuner.serving.watchdog import Watchdog


def hangs_are_told(monkeypatch: pytest.MonkeyPatch, model: Path, seconds: float) -> None:
    """The watchdog waits `seconds` for progress once the fake engine of `model` has begun to hang, and PATIENCE for one
    that is at work."""

    def limit(watchdog: Watchdog) -> float:
        return seconds if (model / "hangs.txt").exists() else PATIENCE

    monkeypatch.setattr(Watchdog, "_hang_timeout", property(limit, lambda watchdog, given: None), raising=False)


def clock_leaps(monkeypatch: pytest.MonkeyPatch, when: Path) -> None:
    """The clock by which an engine must listen goes past any limit when the file `when` appears."""

    def monotonic() -> float:
        return time.monotonic() + (2 * PATIENCE if when.exists() else 0.0)

    monkeypatch.setattr("tuner.serving.process.time", SimpleNamespace(monotonic=monotonic))
