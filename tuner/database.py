"""Which databases hold studies: a SQLite file, or PostgreSQL by its URL."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from tuner import schema

# A Ctrl-C while it closes a connection SQLAlchemy raises again, and logs: without a handler, as a traceback on stderr.
logging.getLogger("sqlalchemy.pool").addHandler(logging.NullHandler())


def database_url(url_or_path: str | Path) -> sa.URL:
    """The URL of a SQLite file or of a PostgreSQL database. Raises ValueError for anything else."""
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        url = sa.URL.create("sqlite", database=str(Path(url_or_path).absolute()))
    else:
        try:
            url = sa.make_url(url_or_path)
        except ArgumentError:
            raise ValueError("database: expected a file, or a URL like postgresql://user@host/name") from None
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise ValueError(f"database: expected sqlite or postgresql (given: {url.get_backend_name()})")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("database: a study lives in a file; expected sqlite:///FILE")
    return url


def prepare(engine: sa.Engine, name: str, create: bool, version: int) -> None:
    """Create the tables that are missing, unless there are none and `create` is False. name: of the database, for the
    messages. version: the newest schema that is understood. Raises ValueError for no study database and a newer schema.
    """
    known = sa.inspect(engine).has_table(schema.versions.name)
    if not known and not create:
        raise ValueError(f"{name}: holds no studies")
    with engine.begin() as connection:
        found = connection.scalar(sa.select(sa.func.max(schema.versions.c.version))) if known else None
        if found is not None and found > version:
            raise ValueError(f"{name}: schema version {found} is a newer servetune's; this one reads up to {version}")
        schema.tables.create_all(connection)
        if found is None:
            connection.execute(sa.insert(schema.versions).values(version=version))


def configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    """WAL lets a report read while a study writes; the mode stays with the file, for Optuna's connections too."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")
