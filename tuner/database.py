"""Which databases hold studies: a SQLite file, or PostgreSQL by its URL."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError


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


def configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    """WAL lets a report read while a study writes; the mode stays with the file, for Optuna's connections too."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")
