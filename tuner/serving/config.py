"""ServingConfig: which engine, which model and which values of its knobs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """One configuration of one engine. settings: EngineConfig fields that are not knobs of the study (model, memory,
    device…); knobs: what the study varies. Equal configurations have equal fingerprints."""

    engine: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    knobs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        """Every EngineConfig field that is set, knobs over settings."""
        return {**self.settings, **self.knobs}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) of the engine and the values, independent of their order."""
        text = json.dumps([self.engine, self.values], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
