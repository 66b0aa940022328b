"""What people thought of answers: append-only, in a database file of its own, so that it never waits for an index run.

`read_feedback` is for programs: `tandem pairs from-feedback` makes pairs of the corrected answers.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from indexer.errors import TandemError

FILE = "feedback.sqlite"
# With the default limit of a request body a full file has 7 GB at the very most; real feedback comes to some 200 MB.
MOST_ENTRIES = 100_000
PAGE = 100
# Seconds to wait for others who write.
_WAIT = 10.0
Vote = Literal["up", "down"]

_SCHEMA = """CREATE TABLE IF NOT EXISTS feedback (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    created TEXT NOT NULL,
    key TEXT NOT NULL,
    groups TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT"""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What was said of one answer. `documents` are paths, `citations` as they stand in the body of /ask."""

    question: str
    mode: str
    vote: Vote
    answer: str = ""
    adapter: str | None = None
    corrected_answer: str = ""
    comment: str = ""
    documents: tuple[str, ...] = ()
    citations: tuple[Mapping[str, Any], ...] = ()
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Feedback:
    """A stored opinion: when it came, from whom (the name of a key; empty without keys) and with which groups."""

    id: int
    created: str
    key: str
    groups: tuple[str, ...]
    opinion: Opinion


def add_feedback(home: Path, opinion: Opinion, key: str = "", groups: tuple[str, ...] = ()) -> int:
    """Store it; returns its id. Raises TandemError when the file is full or cannot be written."""
    body = json.dumps(asdict(opinion), ensure_ascii=False)
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    with _opened(home) as connection:
        if connection.execute("SELECT count(*) FROM feedback").fetchone()[0] >= MOST_ENTRIES:
            raise TandemError(
                f"There are {MOST_ENTRIES:,} opinions already.",
                do=f"Move {FILE} out of the home folder; a new one is begun.",
                code="unavailable",
            )
        cursor = connection.execute(
            "INSERT INTO feedback (created, key, groups, body) VALUES (?, ?, ?, ?)",
            (created, key, json.dumps(groups), body),
        )
        return int(cursor.lastrowid or 0)


def read_feedback(home: Path, after: int = 0, limit: int | None = None) -> Iterator[Feedback]:
    """Opinions in the order in which they came, those with an id over `after`; none when none was ever given."""
    if not (home / FILE).is_file():
        return
    with _opened(home) as connection:
        sql = "SELECT * FROM feedback WHERE id > ? ORDER BY id LIMIT ?"
        for row in connection.execute(sql, (after, -1 if limit is None else limit)):
            values = json.loads(row[4])
            values |= {name: tuple(values[name]) for name in ("documents", "citations")}
            yield Feedback(row[0], row[1], row[2], tuple(json.loads(row[3])), Opinion(**values))


def _use_wal(connection: sqlite3.Connection) -> None:
    """Set the journal of a file that may be new. SQLite does not wait for others who are just setting it, so we do."""
    deadline = time.monotonic() + _WAIT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if (
                error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                or time.monotonic() > deadline
            ):
                raise
        time.sleep(0.01)


@contextmanager
def _opened(home: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(home / FILE, timeout=_WAIT, isolation_level=None)) as connection:
            _use_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(_SCHEMA)
            yield connection
    except sqlite3.Error as error:
        raise TandemError(
            f"The feedback file {FILE} cannot be used: {error}.",
            do="Free some disk space, or move the file out of the home folder.",
            code="unavailable",
        ) from error
