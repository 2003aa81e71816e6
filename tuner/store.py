"""The study database: our measurements beside Optuna's tables, in one SQLite file or one PostgreSQL database.

Optuna's tables hold parameters, states and values of trials; ours hold what was measured, raw. Prompt text is in none.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optuna
import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, IntegrityError

from tuner import schema
from tuner.database import configure_sqlite, database_url, prepare
from tuner.scoring.probes import ProbeRecord
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement
from tuner.stored import (
    AskedTrial,
    Failure,
    Lease,
    RawRecords,
    StoredMeasurement,
    StoredVerification,
    StudyInfo,
    ValidationFailure,
    dump,
    pack,
    unpack,
)

SCHEMA_VERSION = 1
SEARCH_END = "search_end"
"""Attribute of the Optuna study: why its search ended."""
BUSY_TIMEOUT = 30.0
"""Seconds that a SQLite connection waits for another writer."""
_PLAIN = ("purpose", "window", "time_scale", "duration", "stopped", "warm")
_JSON = ("environment", "seconds", "engine_metrics")
"""Fields of a Measurement that are columns as they are, and those that are kept as JSON text."""


class Store:
    """One database. Every save is committed when it returns; close() it, or use it in a `with`."""

    def __init__(self, url_or_path: str | Path, create: bool = True) -> None:
        """Open the database, and create what is missing unless `create` is False.

        Raises ValueError for a file that is missing or no study database, an unknown URL, and a newer schema.
        """
        self._url = database_url(url_or_path)
        sqlite = self._url.get_backend_name() == "sqlite"
        self._name = str(self._url.database) if sqlite else self._url.render_as_string(hide_password=True)
        if sqlite and not create and not Path(str(self._url.database)).is_file():
            raise ValueError(f"{self._name}: no such file")
        self._connect_args: dict[str, Any] = {"timeout": BUSY_TIMEOUT} if sqlite else {}
        # No pool for a file: a connection that is opened when needed cannot be leaked, and opening one is cheap.
        pool = sa.NullPool if sqlite else None
        self._engine = sa.create_engine(self._url, connect_args=self._connect_args, poolclass=pool)
        self._optuna: optuna.storages.RDBStorage | None = None
        if sqlite:
            sa.event.listen(self._engine, "connect", configure_sqlite)
        try:
            prepare(self._engine, self._name, create, SCHEMA_VERSION)
        except (DatabaseError, sqlite3.DatabaseError) as error:
            cause = error.orig if isinstance(error, DatabaseError) else error
            raise ValueError(f"{self._name}: cannot be opened: {str(cause).splitlines()[0]}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection, Optuna's included."""
        if self._optuna is not None:
            self._optuna.remove_session()
            self._optuna.engine.dispose()
            self._optuna = None
        self._engine.dispose()

    def optuna_storage(self) -> optuna.storages.RDBStorage:
        """Optuna's storage in the same database; it is closed with the store."""
        if self._optuna is None:
            url = self._url.render_as_string(hide_password=False)
            self._optuna = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": self._connect_args})
        return self._optuna

    def optuna_trials(self, study: str) -> tuple[optuna.trial.FrozenTrial, ...]:
        """Optuna's trials of a study by number; empty while Optuna has no study of this name."""
        storage = self.optuna_storage()
        try:
            study_id = storage.get_study_id_from_name(study)
        except KeyError:
            return ()
        return tuple(sorted(storage.get_all_trials(study_id, deepcopy=False), key=lambda trial: trial.number))

    def trials(self, study: str) -> tuple[AskedTrial, ...]:
        """The trials of a study that were asked for, by number; those that only wait in the queue are left out."""
        waiting, running = optuna.trial.TrialState.WAITING, optuna.trial.TrialState.RUNNING
        asked = [trial for trial in self.optuna_trials(study) if trial.state != waiting]
        return tuple(AskedTrial(trial.number, dict(trial.params), trial.state == running) for trial in asked)

    def search_end(self, study: str) -> str | None:
        """Why the search ended (stopping.Stop), kept in Optuna's tables; None where it does not say."""
        storage = self.optuna_storage()
        try:
            told = storage.get_study_user_attrs(storage.get_study_id_from_name(study))
        except KeyError:
            return None
        return None if SEARCH_END not in told else str(told[SEARCH_END])

    def create_study(
        self, name: str, spec: str, space_hash: str, provenance: Mapping[str, Any], time_scale: float | None = None
    ) -> None:
        """Keep a study's file (YAML or JSON text). Raises ValueError when there is a study of this name."""
        row = {"name": name, "spec": spec, "space_hash": space_hash, "provenance": dump(provenance)}
        try:
            self._insert(schema.studies, {**row, "time_scale": time_scale})
        except IntegrityError:
            raise ValueError(f"{self._name}: study {name!r} exists; resume it, or choose another name") from None

    def study_names(self) -> tuple[str, ...]:
        """Names of all studies, oldest first."""
        with self._engine.connect() as connection:
            return tuple(connection.scalars(sa.select(schema.studies.c.name).order_by(schema.studies.c.id)))

    def study_info(self, name: str) -> StudyInfo:
        """Raises ValueError, naming the studies that there are, for an unknown name."""
        row = self._study(name)
        return StudyInfo(row.name, row.spec, row.space_hash, json.loads(row.provenance), row.time_scale, row.created)

    def delete_study(self, name: str) -> None:
        """Forget a study, Optuna's part included. References stay: they belong to a model, not to a study.

        Raises ValueError for an unknown name.
        """
        study_id = self._study(name).id
        with self._engine.begin() as connection:
            for table in schema.of_study:
                connection.execute(sa.delete(table).where(table.c.study_id == study_id))
            connection.execute(sa.delete(schema.studies).where(schema.studies.c.id == study_id))
        if name in optuna.get_all_study_names(self.optuna_storage()):
            optuna.delete_study(study_name=name, storage=self.optuna_storage())

    def set_time_scale(self, name: str, time_scale: float) -> None:
        """Keep what the calibration found."""
        self._update_study(name, {"time_scale": time_scale})

    def set_spec(self, name: str, spec: str) -> None:
        """Replace the text of a study's file, of which what is measured has not changed."""
        self._update_study(name, {"spec": spec})

    def save_measurement(
        self, study: str, trial: int | None, measurement: Measurement, quality_key: str | None = None
    ) -> int:
        """Keep a measurement, return its id. quality_key: equal where configurations must give equal answers."""
        row: dict[str, Any] = {name: getattr(measurement, name) for name in _PLAIN}
        row |= {name: dump(getattr(measurement, name)) for name in _JSON}
        row |= {"study_id": self._study(study).id, "trial": trial, "quality_key": quality_key}
        row |= {"config": dump(asdict(measurement.config))}
        raw = RawRecords(measurement.records, measurement.probes, None, measurement.speculation)
        for earlier in self._measurements(study, schema.measurements.c.quality_key == quality_key):
            if raw.probes and earlier.measurement.probes == raw.probes:
                raw = replace(raw, probes=(), probes_of=earlier.id)
        return self._insert(schema.measurements, {**row, "raw": pack(raw)})

    def measurements(self, study: str) -> tuple[StoredMeasurement, ...]:
        """All measurements of a study in the order in which they were saved."""
        return self._measurements(study)

    def quality_records(self, study: str, quality_key: str) -> tuple[ProbeRecord, ...] | None:
        """Probe records of the newest measurement with this quality key that has any; None if there is none."""
        found = self._measurements(study, schema.measurements.c.quality_key == quality_key)
        return next((m.measurement.probes for m in reversed(found) if m.measurement.probes), None)

    def _measurements(self, study: str, *where: sa.ColumnElement[bool]) -> tuple[StoredMeasurement, ...]:
        """`where` must not part a measurement from an earlier one of its quality key."""
        rows = self._rows(schema.measurements, study, *where)
        raws = {row.id: unpack(row.raw, RawRecords, f"measurement {row.id}") for row in rows}
        return tuple(_stored_measurement(row, raws) for row in rows)

    def save_failure(
        self, study: str, trial: int, reason: str, detail: str, seconds: Mapping[str, float], config: ServingConfig
    ) -> None:
        """Keep why a trial has no measurement."""
        row = {"study_id": self._study(study).id, "trial": trial, "reason": reason, "detail": detail}
        self._insert(schema.failures, {**row, "seconds": dump(seconds), "config": dump(asdict(config))})

    def failures(self, study: str) -> tuple[Failure, ...]:
        """All failures of a study in the order in which they were saved."""
        return tuple(_stored_failure(row) for row in self._rows(schema.failures, study))

    def save_validation_failure(self, study: str, failure: ValidationFailure) -> None:
        """Keep that a configuration failed when it was measured again; its trial stays what it was."""
        row = {name: value for name, value in asdict(failure).items() if name != "created"}
        self._insert(schema.validation_failures, {"study_id": self._study(study).id, **row})

    def validation_failures(self, study: str) -> tuple[ValidationFailure, ...]:
        """All failed validations of a study in the order in which they were saved."""
        rows = self._rows(schema.validation_failures, study)
        names = tuple(field.name for field in fields(ValidationFailure))
        return tuple(ValidationFailure(*(getattr(row, name) for name in names)) for row in rows)

    def save_verification(self, study: str, done: StoredVerification) -> None:
        """Keep what a verification was about, once its measurements are kept."""
        self._insert(schema.verifications, {"study_id": self._study(study).id, "content": dump(asdict(done))})

    def verifications(self, study: str) -> tuple[StoredVerification, ...]:
        """All verifications of a study in the order in which they were made."""
        rows = self._rows(schema.verifications, study)
        return tuple(StoredVerification(**{**json.loads(row.content), "created": row.created}) for row in rows)

    def save_reference(self, key: str, records: Sequence[ProbeRecord]) -> None:
        """Keep reference probe records under the hash of what they depend on; the first ones stay."""
        try:
            self._insert(schema.references, {"key": key, "records": pack(tuple(records))})
        except IntegrityError:
            return

    def reference(self, key: str) -> tuple[ProbeRecord, ...] | None:
        """Reference probe records; None when they were never measured."""
        with self._engine.connect() as connection:
            packed = connection.scalar(sa.select(schema.references.c.records).where(schema.references.c.key == key))
        return None if packed is None else unpack(packed, tuple[ProbeRecord, ...], f"reference {key}")

    def acquire_lease(self, study: str, owner: str, seconds: float) -> None:
        """Become the only runner of a study for `seconds`. An owner may acquire again; an expired lease is taken over.

        Raises ValueError naming the other owner while its lease lasts.
        """
        now, study_id = time.time(), self._study(study).id
        mine = {"owner": owner, "expires": now + seconds}
        free = sa.or_(schema.leases.c.owner == owner, schema.leases.c.expires <= now)
        try:
            with self._engine.begin() as connection:
                taken = connection.execute(
                    sa.update(schema.leases).where(schema.leases.c.study_id == study_id, free).values(mine)
                )
                if not taken.rowcount:
                    connection.execute(sa.insert(schema.leases).values(study_id=study_id, **mine))
        except IntegrityError:
            held = self.lease(study)
            by = f"{held.owner} for {max(held.expires - now, 0.0):.0f} s more" if held else "another runner"
            raise ValueError(f"study {study!r} is being run by {by}; stop it, or wait") from None

    def renew_lease(self, study: str, owner: str, seconds: float) -> None:
        """Prolong one's own lease. Raises ValueError when another owner has taken it."""
        self.acquire_lease(study, owner, seconds)

    def release_lease(self, study: str, owner: str) -> None:
        """Give the lease up; nothing happens when `owner` does not hold it."""
        where = (schema.leases.c.study_id == self._study(study).id, schema.leases.c.owner == owner)
        with self._engine.begin() as connection:
            connection.execute(sa.delete(schema.leases).where(*where))

    def lease(self, study: str) -> Lease | None:
        """Who holds, or held last, the lease of a study."""
        rows = self._rows(schema.leases, study)
        return Lease(rows[0].owner, rows[0].expires) if rows else None

    def _study(self, name: str) -> sa.Row[Any]:
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(schema.studies).where(schema.studies.c.name == name)).one_or_none()
        if row is None:
            known = ", ".join(self.study_names()) or "none"
            raise ValueError(f"{self._name}: no study {name!r}; there is: {known}")
        return row

    def _update_study(self, name: str, values: Mapping[str, Any]) -> None:
        study_id = self._study(name).id
        with self._engine.begin() as connection:
            connection.execute(sa.update(schema.studies).where(schema.studies.c.id == study_id).values(**values))

    def _insert(self, table: sa.Table, row: Mapping[str, Any]) -> int:
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._engine.begin() as connection:
            key = connection.execute(sa.insert(table).values(**row, created=created)).inserted_primary_key
        return key[0] if key is not None and isinstance(key[0], int) else 0

    def _rows(self, table: sa.Table, study: str, *where: sa.ColumnElement[bool]) -> Sequence[sa.Row[Any]]:
        order = table.c.id if "id" in table.c else table.c.study_id
        query = sa.select(table).where(table.c.study_id == self._study(study).id, *where).order_by(order)
        with self._engine.connect() as connection:
            return connection.execute(query).all()


def _stored_measurement(row: sa.Row[Any], raws: Mapping[int, RawRecords]) -> StoredMeasurement:
    raw = raws[row.id]
    while raw.probes_of is not None:
        raw = replace(raw, probes=raws[raw.probes_of].probes, probes_of=raws[raw.probes_of].probes_of)
    values = {name: getattr(row, name) for name in _PLAIN} | {name: json.loads(getattr(row, name)) for name in _JSON}
    config = ServingConfig(**json.loads(row.config))
    values |= {"records": raw.records, "probes": raw.probes, "speculation": raw.speculation}
    measurement = Measurement(config=config, **values)
    return StoredMeasurement(row.id, row.trial, measurement, row.quality_key, row.created)


def _stored_failure(row: sa.Row[Any]) -> Failure:
    config = ServingConfig(**json.loads(row.config))
    return Failure(row.trial, row.reason, row.detail, json.loads(row.seconds), config, row.created)
