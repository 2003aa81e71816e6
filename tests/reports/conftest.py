"""Fixtures of the report's tests."""

from __future__ import annotations

import pytest
from hand_made_study import study

from tuner.results import StudyResults


@pytest.fixture
def results() -> StudyResults:
    return study()
