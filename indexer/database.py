"""Opens $TANDEM_HOME/tandem.sqlite: schema, version, durability and the lock that keeps writers apart."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from indexer.errors import TandemError

SCHEMA_VERSION = 2
# What brings a database from a version to the next.
UPGRADES = {
    1: (
        "ALTER TABLE keys ADD COLUMN groups TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE keys ADD COLUMN expires TEXT",
        "CREATE TABLE file_groups (path TEXT NOT NULL, sha256 TEXT NOT NULL, groups TEXT NOT NULL,"
        " PRIMARY KEY (path, sha256)) STRICT",
        "CREATE INDEX documents_with_group ON documents (row)"
        " WHERE coalesce(json_extract(metadata, '$.group'), '') != ''",
    )
}
DATABASE = "tandem.sqlite"
BUSY_SECONDS = 30.0


def open_database(home: Path) -> sqlite3.Connection:
    """A connection in WAL mode with full synchronisation, so a commit survives kill -9 and power loss.

    Makes the folder and the tables where they are missing. Raises TandemError when the folder cannot be
    written, the file is not a database, or a newer Tandem wrote it.
    """
    path = home / DATABASE
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not os.access(home, os.W_OK):
            raise PermissionError(13, "Permission denied", str(home))
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")
        _migrate(connection, path)
    except (OSError, sqlite3.OperationalError) as error:
        raise TandemError(
            f"The home folder {home} cannot be used: {error}.",
            expected="A folder that this user may write to, on a disk with free space.",
            do="Set TANDEM_HOME to such a folder.",
            code="unavailable",
        ) from error
    except sqlite3.DatabaseError as error:
        raise TandemError(
            f"{path} is not a readable Tandem database: {error}.",
            do="Restore it from a backup, or move it away and run `tandem index` to build a new one.",
            code="unavailable",
        ) from error
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION:
        return
    if version > SCHEMA_VERSION:
        raise TandemError(
            f"{path} was written by a newer Tandem (layout {version}; this one knows {SCHEMA_VERSION}).",
            do="Update Tandem, or use another TANDEM_HOME.",
            code="unavailable",
        )
    with transaction(connection):
        # Another process may have made the tables while this one waited for the write lock.
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _statements(files("indexer").joinpath("schema.sql").read_text("utf-8")):
                connection.execute(statement)
        for step in range(max(version, 1), SCHEMA_VERSION):
            for statement in UPGRADES[step] if version else ():
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _statements(script: str) -> Iterator[str]:
    # executescript() would commit first; the tables must appear all at once.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing: commits at the end, rolls back on any exception."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def exclusive(home: Path, name: str, busy: TandemError) -> Iterator[None]:
    """Hold $TANDEM_HOME/<name>.lock, or raise `busy` at once when another process holds it.

    The kernel drops the lock when its holder ends, however it ends.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle = os.open(home / f"{name}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise TandemError(
            f"The home folder {home} cannot be written: {error.strerror}.",
            expected="A folder that this user may write to.",
            do="Set TANDEM_HOME to such a folder.",
            code="unavailable",
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield
    finally:
        os.close(handle)
