"""The end of a sync: make a staged generation the current one, go back to the one before, clear what no one can see."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import numpy as np

from indexer.database import exclusive, transaction
from indexer.derived import VECTOR_FOLDER
from indexer.errors import TandemError
from indexer.rewrite import write_file
from indexer.store import Generation, Snapshot, Store, current_generation

TABLES = ("files", "documents", "chunks")


class Stamp(Protocol):
    """What a generation records of its embedder."""

    @property
    def identity(self) -> str:
        """Equal exactly when vectors may be compared."""

    @property
    def dimension(self) -> int:
        """D."""


def publish(
    connection: sqlite3.Connection,
    home: Path,
    *,
    number: int,
    ended_files: Sequence[int],
    embedder: Stamp,
    chunking: str,
    needs_file: Callable[[int, int], bool],
) -> Generation:
    """Commit generation `number`: what was staged under it lives from now on, the ended files' rows end.

    Everything readers can see changes in the one transaction here. The FAISS file is complete on disk before it, and
    is made outside of it: that may take minutes, in which others can write to the database. The caller holds the lock.
    """
    old = connection.execute(
        "SELECT g.* FROM generations g JOIN meta m ON m.key = 'generation' AND g.number = CAST(m.value AS INTEGER)"
    ).fetchone()
    ended = _ended_rows(connection, ended_files)
    generation = Generation(
        number=number,
        parent=old["number"] if old else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        embedder=embedder.identity,
        chunking=chunking,
        dimension=embedder.dimension,
        documents=(old["documents"] if old else 0) + _born(connection, "documents", number) - len(ended["documents"]),
        chunks=(old["chunks"] if old else 0) + _born(connection, "chunks", number) - len(ended["chunks"]),
        vector_file=old["vector_file"] if old else None,
        vector_sha256=old["vector_sha256"] if old else None,
        vector_rows=old["vector_rows"] if old else 0,
        vector_drift=(old["vector_drift"] if old else 0) + _born(connection, "chunks", number) + len(ended["chunks"]),
        vector_kind=old["vector_kind"] if old else "exact",
        vector_recall=old["vector_recall"] if old else None,
        vector_trained=old["vector_trained"] if old else 0,
    )
    if needs_file(generation.vector_drift, generation.vector_rows):
        generation = _with_file(connection, home, generation, ended["chunks"])
    fields = {name: getattr(generation, name) for name in Generation.__slots__}
    marks = ", ".join(f":{name}" for name in fields)
    with transaction(connection):
        for table, rows in ended.items():
            connection.executemany(f"UPDATE {table} SET died = ? WHERE row = ?", [(number, row) for row in rows])
        connection.execute(f"INSERT INTO generations ({', '.join(fields)}) VALUES ({marks})", fields)
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('generation', ?)", (str(number),))
    return generation


def _ended_rows(connection: sqlite3.Connection, files: Sequence[int]) -> dict[str, list[int]]:
    """The living rows of the three tables that end with these files."""
    ended: dict[str, list[int]] = {table: [] for table in TABLES}
    for file in dict.fromkeys(files):
        if not connection.execute("SELECT 1 FROM files WHERE row = ? AND died IS NULL", (file,)).fetchone():
            continue
        ended["files"].append(file)
        documents = connection.execute("SELECT row FROM documents WHERE file = ? AND died IS NULL", (file,)).fetchall()
        ended["documents"] += [row[0] for row in documents]
        for document in documents:
            chunks = connection.execute("SELECT row FROM chunks WHERE document = ? AND died IS NULL", (document[0],))
            ended["chunks"] += [row[0] for row in chunks]
    return ended


def _born(connection: sqlite3.Connection, table: str, number: int) -> int:
    """Rows staged for this generation, so that the cost of counting is that of the change."""
    return int(connection.execute(f"SELECT count(*) FROM {table} WHERE born = ?", (number,)).fetchone()[0])


def _with_file(connection: sqlite3.Connection, home: Path, generation: Generation, ended: Sequence[int]) -> Generation:
    living = connection.execute("SELECT row FROM chunks WHERE died IS NULL ORDER BY row")
    rows = np.setdiff1d(np.fromiter((row[0] for row in living), np.int64), np.asarray(ended, np.int64))
    written = write_file(home, generation, rows, Snapshot(connection, generation).vectors)
    return replace(generation, **asdict(written))


def prune(connection: sqlite3.Connection, home: Path) -> None:
    """Delete what neither the current generation nor the one before it can see: rows, vectors, FAISS files."""
    current = current_generation(connection)
    oldest = current.parent if current.parent is not None else current.number
    with transaction(connection):
        dead = "died IS NOT NULL AND died <= ?"
        vectors = [row[0] for row in connection.execute(f"SELECT vector FROM chunks WHERE {dead}", (oldest,))]
        connection.execute(
            "INSERT INTO chunk_words (chunk_words, rowid, context, text)"
            f" SELECT 'delete', row, context, text FROM chunks WHERE {dead}",
            (oldest,),
        )
        for table in TABLES:
            connection.execute(f"DELETE FROM {table} WHERE {dead}", (oldest,))
        vectors += [row[0] for row in connection.execute("SELECT key FROM pending_vectors")]
        connection.executemany(
            "DELETE FROM vectors WHERE key = ?1 AND NOT EXISTS (SELECT 1 FROM chunks WHERE vector = ?1)",
            [(key,) for key in set(vectors)],
        )
        connection.execute("DELETE FROM pending_vectors")
        connection.execute("DELETE FROM generations WHERE number < ?", (oldest,))
        kept = {row[0] for row in connection.execute("SELECT vector_file FROM generations")}
    _delete_files(home, kept)


def _delete_files(home: Path, kept: set[str | None]) -> None:
    folder = home / VECTOR_FOLDER
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name not in kept:
                os.unlink(path)


def sync_running() -> TandemError:
    """What a second writer is told."""
    return TandemError(
        "Another process is indexing into this home folder.",
        do="Wait for it to finish; questions are answered meanwhile.",
        code="conflict",
    )


def rollback(store: Store) -> Generation:
    """Make the previous generation current again and return it. The folders are not touched.

    Raises TandemError when there is none (only one step is kept) or a sync is running.
    """
    with exclusive(store.home, "index", sync_running()), store.connection() as connection:
        with transaction(connection):
            current = current_generation(connection)
            previous = connection.execute("SELECT 1 FROM generations WHERE number = ?", (current.parent,)).fetchone()
            if previous is None:
                raise TandemError(
                    "There is no previous generation to go back to.",
                    expected="An index that was changed at least once; one step back is kept.",
                    code="conflict",
                )
            born = "born = ?"
            connection.execute(
                "INSERT INTO chunk_words (chunk_words, rowid, context, text)"
                f" SELECT 'delete', row, context, text FROM chunks WHERE {born}",
                (current.number,),
            )
            # The next publishing clears the vectors that no chunk uses then.
            connection.execute(
                f"INSERT OR IGNORE INTO pending_vectors SELECT vector FROM chunks WHERE {born}", (current.number,)
            )
            for table in TABLES:
                connection.execute(f"DELETE FROM {table} WHERE {born}", (current.number,))
                connection.execute(f"UPDATE {table} SET died = NULL WHERE died = ?", (current.number,))
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('generation', ?)", (str(current.parent),))
            connection.execute("DELETE FROM generations WHERE number = ?", (current.number,))
            # The step before the previous one was pruned, so there is no further way back.
            connection.execute("UPDATE generations SET parent = NULL WHERE number = ?", (current.parent,))
        return current_generation(connection)
