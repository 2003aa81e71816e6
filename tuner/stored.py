"""What the store hands out, and how raw records are packed. Knows no database."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from tuner.scoring.probes import ProbeRecord
from tuner.scoring.speculation import DomainSpeculation
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement, Purpose
from tuner.traffic.trace import RequestRecord

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StudyInfo:
    """spec: the study file as YAML or JSON text. time_scale: None until the calibration has found it.
    created: UTC, ISO 8601."""

    name: str
    spec: str
    space_hash: str
    provenance: Mapping[str, Any]
    time_scale: float | None
    created: str


@dataclass(frozen=True, slots=True)
class AskedTrial:
    """A trial that Optuna's tables know: asked for, and running or told."""

    number: int
    params: Mapping[str, Any]
    running: bool


@dataclass(frozen=True, slots=True)
class StoredMeasurement:
    """trial: None for a measurement made before there was a trial. quality_key: see Store.save_measurement."""

    id: int
    trial: int | None
    measurement: Measurement
    quality_key: str | None
    created: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A trial that ended without a measurement. seconds: where its time went."""

    trial: int
    reason: str
    detail: str
    seconds: Mapping[str, float]
    config: ServingConfig
    created: str


@dataclass(frozen=True, slots=True)
class ValidationFailure:
    """A measurement after the search that the engine did not survive. reason: typed, see tuner.errors. created: UTC,
    ISO 8601, set by the store."""

    trial: int
    purpose: Purpose
    window: str
    time_scale: float
    reason: str
    detail: str
    created: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class StoredVerification:
    """One `tune verify`: of which trial, on what. trace: its file; trace_hash: of its content. window: "tune" or
    "holdout" of the study's trace, or "new". reference_key: of the reference that its answers are held against.
    measurements: ids, the baseline's and the trial's by turns. failure: how the trial's engine failed, if it did.
    created: UTC, ISO 8601, set by the store."""

    trial: int
    window: str
    time_scale: float
    trace: str
    trace_hash: str
    reference_key: str
    measurements: Sequence[int]
    failure: str | None = None
    created: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """Who runs a study, and until when (seconds of the Unix epoch)."""

    owner: str
    expires: float


@dataclass(frozen=True, slots=True)
class RawRecords:
    """The part of a measurement that is kept compressed. probes_of: id of an earlier measurement with these probes."""

    records: tuple[RequestRecord, ...]
    probes: tuple[ProbeRecord, ...]
    probes_of: int | None = None
    speculation: tuple[DomainSpeculation, ...] = ()


def pack(value: object) -> bytes:
    """Compressed MessagePack; not JSON, which has no NaN for a broken logit."""
    return zlib.compress(msgspec.msgpack.encode(value))


def unpack(packed: bytes, kind: type[T], what: str) -> T:
    """Raises ValueError, naming `what`, for bytes that pack() did not write."""
    try:
        return msgspec.msgpack.decode(zlib.decompress(packed), type=kind)
    except (zlib.error, msgspec.DecodeError) as error:
        raise ValueError(f"{what} cannot be read: {error}") from None


def dump(value: object) -> str:
    """JSON text; paths and other foreign types as their text."""
    return json.dumps(value, default=str)
