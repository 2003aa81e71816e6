"""The tables of the study database that are ours; Optuna's stand beside them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa


def _columns(kind: type[sa.types.TypeEngine[Any]], *names: str, nullable: bool = False) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=nullable) for name in names]


def _study_key(primary: bool = False) -> sa.Column[Any]:
    return sa.Column("study_id", sa.ForeignKey("tune_studies.id"), nullable=False, primary_key=primary, index=True)


tables = sa.MetaData()
versions = sa.Table("tune_schema", tables, sa.Column("version", sa.Integer, primary_key=True))
studies = sa.Table(
    "tune_studies",
    tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    *_columns(sa.Text, "spec", "space_hash", "provenance", "created"),
    *_columns(sa.Float, "time_scale", nullable=True),
)
measurements = sa.Table(
    "tune_measurements",
    tables,
    sa.Column("id", sa.Integer, primary_key=True),
    _study_key(),
    *_columns(sa.Integer, "trial", nullable=True),
    *_columns(sa.Text, "purpose", "window", "config", "environment", "seconds", "engine_metrics", "created"),
    *_columns(sa.Float, "time_scale", "duration"),
    *_columns(sa.LargeBinary, "raw"),
    *_columns(sa.Boolean, "warm"),
    *_columns(sa.Text, "stopped", "quality_key", nullable=True),
)
failures = sa.Table(
    "tune_failures",
    tables,
    sa.Column("id", sa.Integer, primary_key=True),
    _study_key(),
    *_columns(sa.Integer, "trial"),
    *_columns(sa.Text, "reason", "detail", "seconds", "config", "created"),
)
validation_failures = sa.Table(
    "tune_validation_failures",
    tables,
    sa.Column("id", sa.Integer, primary_key=True),
    _study_key(),
    *_columns(sa.Integer, "trial"),
    *_columns(sa.Text, "purpose", "window", "reason", "detail", "created"),
    *_columns(sa.Float, "time_scale"),
)
"""A table of its own: the trial has a measurement and did not fail, and databases of before need no new column."""
verifications = sa.Table(
    "tune_verifications",
    tables,
    sa.Column("id", sa.Integer, primary_key=True),
    _study_key(),
    *_columns(sa.Text, "content", "created"),
)
references = sa.Table(
    "tune_references",
    tables,
    sa.Column("key", sa.String(128), primary_key=True),
    *_columns(sa.LargeBinary, "records"),
    *_columns(sa.Text, "created"),
)
_lease_columns = (_study_key(primary=True), *_columns(sa.Text, "owner"), *_columns(sa.Float, "expires"))
leases = sa.Table("tune_leases", tables, *_lease_columns)
of_study = (measurements, failures, validation_failures, verifications, leases)
"""What belongs to one study, and goes with it."""
